"""kill -9 at any moment: the resumed run is bit for bit the one that was not killed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.engine import train as trainer
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.log import MetricsLog, read_metrics
from maskrcnn.engine.resume import run_config
from tests.conftest import ROOT, tiny_config
from tests.engine.worker import no_sync, small_network


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from maskrcnn.data.synthetic import write_dataset

    root = tmp_path_factory.mktemp("six") / "data"
    write_dataset(root, train=6, test=0, size=64, seed=0)
    return root


def _config(data: Path, out: Path, save_every: int = 3) -> TrainConfig:
    """4 training and 2 validation pictures: 2 epochs of 2 steps of 2 batches of 1 picture, with averaged weights."""
    config = tiny_config(data, out)
    return dataclasses.replace(
        config,
        data_options=dataclasses.replace(config.data_options, crop=32, val_fraction=0.34),
        model_options=dataclasses.replace(config.model_options, roi_batch_per_image=8, box_hidden=64),
        optim_options=dataclasses.replace(config.optim_options, batch_size=1, accumulate=2, ema=0.9),
        save_every=save_every,
    )


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "mask_rcnn_resnet_fpn", small_network)
        patch.setattr(os, "fsync", no_sync)
        return trainer.train(_config(data, tmp_path_factory.mktemp("whole") / "run"))


def _tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {k: v for key, inner in entries for k, v in _tensors(inner, f"{name}/{key}").items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accident", "save_every", "saved_step"),
    [
        # saves: last.pt, the epoch's best.pt and last.pt (step 2), last.pt (step 3), then those of step 4
        pytest.param("after-step:4", 3, 3, id="between steps, inside an epoch"),
        pytest.param("half-way-through-save:3", 3, 2, id="last.pt.part half written"),
        # saves: last.pt (step 2) twice, the epoch's best.pt and last.pt
        pytest.param("before-rename:4", 2, 2, id="after a validation, last.pt.part not renamed"),
    ],
)
def test_a_killed_run_resumes_exactly(
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accident: str,
    save_every: int,
    saved_step: int,
) -> None:
    run = tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps(_config(data, run, save_every).to_dict()))
    command = [sys.executable, "-m", "tests.engine.worker", str(tmp_path / "config.json"), accident]
    killed = subprocess.run([*command, str(torch.get_num_threads())], cwd=ROOT, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (run / "last.pt.part").exists() == ("step" not in accident)
    assert load_checkpoint(run / "last.pt")["step"] == saved_step
    monkeypatch.setattr(trainer, "mask_rcnn_resnet_fpn", small_network)
    monkeypatch.setattr(os, "fsync", no_sync)
    trainer.train(run_config(run))
    assert read_metrics(run / "metrics.jsonl") == read_metrics(uninterrupted / "metrics.jsonl")
    for name in ("last.pt", "best.pt"):
        ours, theirs = (_tensors(load_checkpoint(folder / name)) for folder in (run, uninterrupted))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not list(run.glob("*.part"))


@pytest.mark.slow
def test_best_holds_the_average_and_last_holds_both(uninterrupted: Path) -> None:
    best, last = (load_checkpoint(uninterrupted / name) for name in ("best.pt", "last.pt"))
    assert best["step"] == last["step"] == 4  # of equal scores the later epoch's weights are kept
    assert last["ema"]["updates"] == 4
    key = "box_head.fc7.weight"
    assert torch.equal(best["model"][key], last["ema"]["model"][key])
    assert not torch.equal(last["model"][key], last["ema"]["model"][key])


def test_the_log_of_a_resumed_run_forgets_what_will_come_again(tmp_path: Path) -> None:
    steps = [{"step": step, "epoch": 1 + (step > 2), "loss": 1.0} for step in (1, 2, 3)]
    validation = {"step": 2, "epoch": 1, "mask/AP": 0.5}
    rows = [*steps[:2], validation, steps[2]]
    for resume, kept in (((2, 0), rows[:2]), ((2, 1), rows[:3]), ((3, 1), rows)):
        log = MetricsLog(tmp_path / "metrics.jsonl")
        for row in rows:
            log.write(row)
        with open(log.path, "a") as file:
            file.write('{"step": 4, "los')  # cut off by the kill
        assert MetricsLog(log.path, resume).rows == read_metrics(log.path) == kept
