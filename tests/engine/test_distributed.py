"""Several processes train like one process with all their pictures; gloo on the CPU, in separate processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.engine import train as trainer
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.datasets import build_datasets
from maskrcnn.engine.log import read_metrics
from maskrcnn.engine.resume import run_config
from maskrcnn.errors import InputError
from maskrcnn.evaluation.evaluate import evaluate, predict_dataset, to_results
from maskrcnn.predict.predictor import Predictor
from tests.conftest import ROOT, tiny_config
from tests.engine.worker import no_sync, small_network

EVERYTHING = 10**6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 pictures, of which some have no cell: a process may have no positive RoI."""
    from maskrcnn.data.synthetic import write_dataset

    root = tmp_path_factory.mktemp("nine") / "data"
    write_dataset(root, train=9, test=0, size=64, seed=1)
    for picture in sorted((root / "train").iterdir())[::4]:
        for path in picture.glob("class*.tif"):
            path.unlink()
    return root


def _config(data: Path, out: Path, batch_size: int, epochs: int = 1) -> TrainConfig:
    """6 training and 3 validation pictures; every anchor and RoI is sampled, so that nothing is left to chance.

    SGD, for Adam divides by the gradient's size: where it is nearly 0, rounding decides the sign of the change.
    """
    config = tiny_config(data, out, epochs)
    return dataclasses.replace(
        config,
        data_options=dataclasses.replace(config.data_options, val_fraction=0.34),
        model_options=dataclasses.replace(
            config.model_options,
            rpn_batch_per_image=EVERYTHING,
            roi_batch_per_image=EVERYTHING,
            detections_per_image=9,
            box_hidden=64,
        ),
        optim_options=dataclasses.replace(
            config.optim_options, batch_size=batch_size, optimizer="sgd", lr=1e-2, warmup_steps=0
        ),
        precision="fp32",
        save_every=100,
    )


def _worker(config: TrainConfig, accident: str, path: Path) -> list[str]:
    path.write_text(json.dumps(config.to_dict()))
    return ["-m", "tests.engine.worker", str(path), accident, "1"]


def _start(command: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes, with what torchrun would tell them, and nobody who ends one when the other dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **address, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def _ends(processes: list[subprocess.Popen[str]], seconds: float = 60) -> list[tuple[int, str]]:
    """Exit status and stderr of each; fails, and ends them, where one does not end by itself."""
    try:
        errors = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.fixture
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_pictures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Also: validation that is shared out finds what one process finds, and process 0 alone writes and prints."""
    command = _worker(_config(data, tmp_path / "two", 1), "none", tmp_path / "config.json")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--redirects", "3", "--log-dir"]
    ended = subprocess.run(
        [sys.executable, *torchrun, str(tmp_path / "logs"), *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    logs = {f"{path.parent.name}/{path.stem}": path.read_text() for path in (tmp_path / "logs").rglob("std*.log")}
    assert ended.returncode == 0, logs
    assert "validation after epoch 1" in logs["0/stdout"]
    assert logs["1/stdout"] == ""
    assert "epoch 1" in logs["0/stderr"]
    assert "epoch 1" not in logs["1/stderr"]
    assert "validate" not in logs["1/stderr"]

    monkeypatch.setattr(trainer, "mask_rcnn_resnet_fpn", small_network)
    monkeypatch.setattr(os, "fsync", no_sync)
    trainer.train(_config(data, tmp_path / "one", 2))
    (*ours, our_scores), (*theirs, _) = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    assert [row["step"] for row in ours] == [1, 2, 3]
    for our, their in zip(ours, theirs, strict=True):
        assert our == pytest.approx(their, rel=2e-5, abs=1e-7)
    together, one = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("two", "one"))
    for key, value in one.items():
        torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-6)

    # what the two found together, against what one process finds with the weights of the two
    found, nothing = (json.loads((tmp_path / f"two-results-{rank}.json").read_text()) for rank in range(2))
    assert nothing == []
    contents = load_checkpoint(tmp_path / "two" / "last.pt")
    model = small_network(**contents["model_options"])
    model.load_state_dict(contents["model"])
    predictor = Predictor(model, None, contents["class_names"], torch.device("cpu"), "fp32", diameter=30.0)
    pictures = build_datasets(_config(data, tmp_path, 1), tmp_path).val
    alone = to_results(pictures, predict_dataset(predictor, pictures))
    assert len({result["image_id"] for result in alone}) == 3
    assert found == json.loads(json.dumps(alone))
    scores = evaluate(predictor, pictures)
    assert {key: our_scores[key] for key in scores} == scores


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both(data: Path, tmp_path: Path) -> None:
    config = _config(data, tmp_path / "run", 1)
    ends = _ends(_start(_worker(config, "not-finite", tmp_path / "config.json")))
    assert [status for status, _ in ends] == [1, 1]
    for _, error in ends:
        assert "Traceback" not in error
        assert "error: the loss is not finite at step 2" in error
        assert error.rsplit("on the pictures ", 1)[1].count("synthetic-") == 1  # that of process 1 alone
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 1


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_both_after_the_same_step(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = _start(_worker(_config(data, run, 1, epochs=100), "", tmp_path / "config.json"))
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run / "metrics.jsonl")) < 2:
        assert time.monotonic() < deadline, _ends(processes, 1)
        time.sleep(0.1)
    for _ in range(2):  # the terminal's and torchrun's
        processes[1].send_signal(signal.SIGINT)
        time.sleep(0.05)
    (main, hint), (other, nothing) = _ends(processes)
    assert (main, other) == (130, 130)
    assert f"resume with: python train.py --resume {run}" in hint
    assert "go on" not in nothing
    assert "Traceback" not in hint + nothing
    steps = [row["step"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    assert load_checkpoint(run / "last.pt")["step"] == steps[-1] == len(steps)
    with pytest.raises(InputError, match=r"last\.pt: the run was trained by 2 process\(es\)"):
        trainer.train(run_config(run))
    shutil.rmtree(run)
