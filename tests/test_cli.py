"""The command line: what is offered, how errors look, and scores of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from maskrcnn.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn.cli import COMMANDS, main
from maskrcnn.data.coco import to_coco
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.engine.log import read_metrics


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["paint"], 2)])
def test_all_commands_are_named(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == status
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--checkpoint" in capsys.readouterr().out or command == "train"


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predict", "--checkpoint", str(tmp_path / "none.pt"), "--images", str(tmp_path), "--out", str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_evaluate_repeats_the_validation_of_the_run(
    tiny_run: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same pictures, predicted the same way: the same scores, but for the thresholds that were fitted since."""
    main(["evaluate", "--checkpoint", str(tiny_run / "last.pt"), "--data", str(tiny_dataset), "--device", "cpu"])
    assert "TP/(TP+FP+FN) 0.5" in capsys.readouterr().out
    out = tmp_path / "scores"
    main(["evaluate", "--checkpoint", str(tiny_run / "last.pt"), "--out", str(out), "--device", "cpu"])
    scores = json.loads((out / "scores.json").read_text())
    (validation,) = [row for row in read_metrics(tiny_run / "metrics.jsonl") if row["epoch"] == 2 and "mask/AP" in row]
    assert {key: validation[key] for key in scores} == scores
    assert (out / "precision_recall.png").is_file()


def test_evaluate_on_other_pictures(tiny_run: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """A folder and the same as a COCO file get the same scores; the places of the run's own pictures do not matter."""
    shutil.copytree(tiny_dataset / "train", tmp_path / "train")
    folder = Hw3Folder(tmp_path)
    (tmp_path / "train" / "cells.json").write_text(json.dumps(to_coco(folder)))
    contents = load_checkpoint(tiny_run / "best.pt")
    contents["config"]["data_options"]["image_root"] = "/somewhere/else"
    save_checkpoint(tmp_path / "best.pt", contents)
    options = ["--checkpoint", str(tmp_path / "best.pt"), "--device", "cpu"]
    main(["evaluate", *options, "--val", str(tmp_path), "--out", str(tmp_path / "a")])
    main(["evaluate", *options, "--coco", str(tmp_path / "train" / "cells.json"), "--out", str(tmp_path / "b")])
    first, second = (json.loads((tmp_path / name / "scores.json").read_text()) for name in "ab")
    assert first == second
    assert len(folder) > len(load_checkpoint(tiny_run / "best.pt")["class_names"])


def test_evaluate_knows_its_classes(tiny_run: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["evaluate", "--checkpoint", str(tiny_run / "best.pt"), "--val", str(tiny_dataset), "--device", "cpu"]
    with pytest.raises(SystemExit):
        main([*options, "--merge-classes", "True"])
    assert "tells 4 classes apart" in capsys.readouterr().err


def test_evaluate_does_not_split_what_was_trained_on_as_a_whole(
    tiny_run: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with validation pictures of their own, also when it is packed."""
    contents = load_checkpoint(tiny_run / "best.pt")
    contents["config"]["data_options"]["val"] = ["/somewhere/else"]
    save_checkpoint(tmp_path / "best.pt", contents)
    main(["pack", "--checkpoint", str(tmp_path / "best.pt"), "--out", str(tmp_path / "best.safetensors")])
    for name in ("best.pt", "best.safetensors"):
        with pytest.raises(SystemExit):
            main(["evaluate", "--checkpoint", str(tmp_path / name), "--data", str(tiny_dataset), "--device", "cpu"])
        assert "give them with --val" in capsys.readouterr().err


def test_evaluate_takes_one_kind_of_pictures(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--checkpoint", str(tiny_run / "best.pt"), "--data", "a", "--val", "b"])
    assert "give either a run's data or pictures that are all scored" in capsys.readouterr().err


def test_pack(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pack", "--checkpoint", str(tiny_run / "best.pt"), "--out", str(tmp_path / "cells.safetensors")])
    assert " MB" in capsys.readouterr().out
    packed, best = (load_checkpoint(path) for path in (tmp_path / "cells.safetensors", tiny_run / "best.pt"))
    assert packed["class_names"] == best["class_names"]
    with pytest.raises(SystemExit):
        main(["pack", "--checkpoint", str(tiny_run / "best.pt"), "--out", str(tmp_path / "cells.pt")])
    assert "ends with .safetensors" in capsys.readouterr().err
