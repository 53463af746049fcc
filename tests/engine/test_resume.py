"""Which runs can be resumed, with which options and pictures."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from maskrcnn.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn.cli import run_command
from maskrcnn.engine import train as trainer
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.log import read_metrics
from maskrcnn.engine.resume import check_pictures, check_resumed, run_config
from maskrcnn.engine.train import train
from maskrcnn.errors import InputError
from tests.conftest import tiny_config


def _changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    """``config`` with other options, in whichever group they are."""
    for name, value in changes.items():
        groups = ("data_options", "model_options", "optim_options")
        group = next((group for group in groups if hasattr(getattr(config, group), name)), None)
        if group is None:
            config = dataclasses.replace(config, **{name: value})
        else:
            options = dataclasses.replace(getattr(config, group), **{name: value})
            config = dataclasses.replace(config, **{group: options})
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epochs": 5},
        {"data": (Path("moved"),)},
        {"workers": 2, "cache_gb": 1.0},
        {"precision": "fp32", "device": "auto"},
        {"val_every": 4, "save_every": 7},
    ],
)
def test_options_that_may_change(tiny_run: Path, changes: dict[str, Any]) -> None:
    check_resumed(_changed(run_config(tiny_run), **changes), load_checkpoint(tiny_run / "last.pt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 96}, r"--crop from 64 to 96"),
        ({"lr": 1.0, "seed": 3}, r"--lr from 0\.0001 to 1\.0, --seed from 0 to 3"),
        ({"mask_loss": "bce"}, r"--mask-loss from dice to bce"),
        ({"from_": "nuclei"}, r"--from from None to nuclei"),
        ({"out": Path("other")}, r"--out is other; expected none with --resume: the run goes on in its folder"),
        ({"out": None}, r"--out is None; expected none with --resume"),
        ({"epochs": 1}, r"--epochs is 1; expected at least 2, which the run has done"),
    ],
)
def test_options_that_may_not(tiny_run: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(_changed(run_config(tiny_run), **changes))


def test_the_command_line_changes_what_it_names_alone(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has 2 epochs; its learning rate, crop and so on are not the defaults of the command line."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    steps = len([row for row in read_metrics(run / "metrics.jsonl") if "loss" in row])
    run_command("train", ["--resume", str(run), "--epochs", "3"])
    last = load_checkpoint(run / "last.pt")
    assert (last["epoch"], last["step"]) == (3, steps // 2 * 3)
    assert last["config"]["data_options"]["crop"] == 64
    validations = [row["epoch"] for row in read_metrics(run / "metrics.jsonl") if "mask/AP" in row]
    assert validations == [1, 2, 3]
    with pytest.raises(SystemExit, match="2"):
        run_command("train", ["--resume", str(run), "--epochs", "3", "--optimizer", "sgd", "--crop", "512"])
    assert "--crop from 64 to 512, --optimizer from adam to sgd" in capsys.readouterr().err


def test_a_run_killed_in_a_validation_repeats_it(
    tiny_dataset: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of the epoch are not lost, and the log has each validation once."""

    class KilledError(Exception):
        pass

    def killed(*args: Any, **options: Any) -> None:
        raise KilledError

    validate = trainer.validate
    monkeypatch.setattr(trainer, "validate", killed)
    with pytest.raises(KilledError):
        train(tiny_config(tiny_dataset, tmp_path / "run"))
    monkeypatch.setattr(trainer, "validate", validate)
    steps = [row for row in read_metrics(tiny_run / "metrics.jsonl") if "loss" in row]
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == len(steps) // 2
    train(run_config(tmp_path / "run"))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == read_metrics(tiny_run / "metrics.jsonl")


def test_a_run_of_which_only_the_last_weights_are_left_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    """Without best.pt, which may have been better than all that follows, and without the log."""
    run = tmp_path / "run"
    run.mkdir()
    state = load_checkpoint(tiny_run / "last.pt", to_resume=True)
    save_checkpoint(run / "last.pt", {**state, "best": 1.0, "validated": 1})
    train(dataclasses.replace(run_config(run), out=run))
    assert load_checkpoint(run / "best.pt")["step"] == state["step"]
    assert (run / "thresholds.json").is_file()


NOW = {"train": ["a", "b", "c"], "val": ["d"]}


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"train": ["a", "b"], "val": ["d"]}, r"1 new \(c\)"),
        ({"train": ["a", "b", "c", "e"], "val": ["d", "f"]}, r"2 gone \(e, f\)"),
        (
            {"train": ["a", "b", "d"], "val": ["c"]},
            "1 moved from training to validation .d., 1 moved from",
        ),
        ({"train": ["b", "a", "c"], "val": ["d"]}, "their order changed"),
    ],
)
def test_other_pictures_are_no_resumption(before: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=rf"--resume run: the pictures changed since the run started: {message}"):
        check_pictures(NOW, {"pictures": before}, "--resume run")


def test_the_same_pictures_are(tiny_run: Path) -> None:
    check_pictures(NOW, {"pictures": NOW}, "run")
    check_pictures(NOW, {}, "run")  # a run of a version that kept no names


def test_a_picture_that_was_added_is_said(tiny_dataset: Path, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "data")
    pictures = sorted((tmp_path / "data" / "train").iterdir())
    shutil.copytree(pictures[0], pictures[0].with_name("added"))
    before = (tiny_run / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"1 new \(added\)"):
        train(_changed(run_config(tiny_run), data=(tmp_path / "data",)))
    assert (tiny_run / "config.json").read_bytes() == before
