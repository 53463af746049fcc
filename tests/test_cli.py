"""The command line: commands, error messages, and scores of a checkpoint."""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskrcnn import cli
from maskrcnn.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn.cli import COMMANDS, main
from maskrcnn.data.coco import to_coco
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.engine.config import DataOptions, OptimOptions, TrainConfig
from maskrcnn.engine.log import read_metrics
from maskrcnn.errors import InputError, one_line_errors
from tests.conftest import ROOT


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["paint"], 2)])
def test_all_commands_are_named(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == status
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in COMMANDS)


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"maskrcnn {importlib.metadata.version('maskrcnn')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--checkpoint" in capsys.readouterr().out or command in ("train", "convert", "doctor")


def test_options_from_a_file(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run's config.json holds, or the names of the command line; options that are given besides win."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr(cli, "train", seen.append)
    config = TrainConfig.from_dict(load_checkpoint(tiny_run / "best.pt")["config"])
    main(["train", "--config", str(tiny_run / "config.json"), "--seed", "7"])
    file = tmp_path / "options.yaml"
    file.write_text(
        "data: [cells]  # a comment\nval-fraction: 0.2\nlr: 1e-3\nfrom: nuclei\nscale_min: null\ncolor-jitter: 1e-1\n"
        "optim_options:\n  epochs: 3\n  warmup-steps: 5\nepochs: 4\n"
    )
    main(["train", "--color-jitter", "0", f"--config={file}"])
    assert seen[0] == dataclasses.replace(config, seed=7, out=None)
    assert seen[1] == TrainConfig(
        data_options=DataOptions(data=(Path("cells"),), val_fraction=0.2, color_jitter=0.0),
        optim_options=OptimOptions(lr=1e-3, epochs=4, warmup_steps=5),
        from_="nuclei",
    )


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("train", "crops: 1", "unknown options: crops"),
        ("train", "crop: 100", "--crop is 100; expected a multiple of 32"),
        ("train", "lr: fast", "--lr is 'fast'; expected"),
        ("train", "data_options: 3", "expected options by name"),
        ("predict", "- images", "list found; expected options by name"),
        ("predict", "images: [a", "expected ',' or ']'"),
        ("predict", "a: \xff", "decode"),
        ("pack", "out: x", "missing: checkpoint"),
        ("evaluate", None, "No such file"),
        ("train --resume run", "lr: 1", "with --resume"),
        ("train --resume=run", "lr: 1", "with --resume"),
        ("train", "resume: run\nlr: 1", "with --resume"),
    ],
)
def test_a_file_of_options_that_cannot_be_used(
    command: str, text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yaml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--config", str(file)])
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "--config" in line
    assert said in line


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train --data a b --lr 1 --data=c", "data"),
        ("predict --images a --channels 0 --channels 1", "channels"),
        ("train --anchor_sizes 4 --anchor-sizes 8", "anchor-sizes"),
    ],
)
def test_a_list_is_given_once(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(command.split())
    assert end.value.code == 2
    expected = f"error: --{name} is given twice; expected once, with all its values: --{name} A B\n"
    assert capsys.readouterr().err == expected


def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predict", "--checkpoint", str(tmp_path / "none.pt"), "--images", str(tmp_path), "--out", str(tmp_path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (InputError("--x is 1;\n expected 2"), 2, "error: --x is 1; expected 2\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 2, "error: /data/x: Permission denied\n"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"/data/x"), 2, "error: /data/x: Is a directory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(
    raised: BaseException, status: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise raised
    assert end.value.code == status
    assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    "raised", [ValueError("x"), OSError("no file in it"), RuntimeError("x"), BrokenPipeError(errno.EPIPE, "a worker's")]
)
def test_faults_of_the_program_keep_their_traceback(raised: Exception) -> None:
    with pytest.raises(type(raised)) as error, one_line_errors():
        raise raised
    assert error.value is raised


def test_a_reader_that_goes_away_ends_the_program_quietly() -> None:
    script = "from maskrcnn.errors import one_line_errors\nwith one_line_errors():\n    print('x' * 200_000)"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_folder_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As os.scandir reports it; the tests may run as root, who may read everything."""

    def refusing(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def reads(path: Any = ".") -> Any:
            if str(path).startswith(str(tmp_path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return read(path)

        return reads

    (tmp_path / "train").mkdir()
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    for command in ("predict --images", "train --device cpu --data", "evaluate --device cpu --val"):
        with pytest.raises(SystemExit) as end:
            main([*command.split(), str(tmp_path)])
        assert end.value.code == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert f"{tmp_path}" in line
        assert "Permission denied" in line


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


def test_evaluate_knows_its_classes(
    tiny_run: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["evaluate", "--checkpoint", str(tiny_run / "best.pt"), "--val", str(tiny_dataset), "--device", "cpu"]
    with pytest.raises(SystemExit):
        main([*options, "--merge-classes"])
    assert "has 4 classes; expected one" in capsys.readouterr().err
    contents = load_checkpoint("nuclei")
    contents["config"]["data_options"]["merge_classes"] = None  # trained on data of one class
    save_checkpoint(tmp_path / "one.pt", contents)
    options[2] = str(tmp_path / "one.pt")
    with pytest.raises(SystemExit):
        main(options)
    assert "knows nucleus; --merge-classes takes all as one" in capsys.readouterr().err
    main([*options, "--merge-classes", "--diameter", "none"])
    assert "\nnucleus" in capsys.readouterr().out


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


def test_evaluate_does_not_split_the_data_of_a_packed_model(
    tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not say which pictures validated it."""
    with pytest.raises(SystemExit):
        main(["evaluate", "--checkpoint", "nuclei", "--data", str(tiny_dataset), "--device", "cpu"])
    assert "nuclei does not say which pictures validated it; give --val" in capsys.readouterr().err


def test_evaluate_takes_one_kind_of_pictures(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--checkpoint", str(tiny_run / "best.pt"), "--data", "a", "--val", "b"])
    assert "give either a run's data or pictures that are all scored" in capsys.readouterr().err


def test_pack(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pack", "--checkpoint", str(tiny_run / "best.pt"), "--out", str(tmp_path / "cells.safetensors")])
    assert " MB" in capsys.readouterr().out
    packed, best = (load_checkpoint(path) for path in (tmp_path / "cells.safetensors", tiny_run / "best.pt"))
    assert packed["class_names"] == best["class_names"]
    best["config"]["data_options"]["data"] = 5
    save_checkpoint(tmp_path / "odd.pt", best)
    with pytest.raises(SystemExit):
        main(["pack", "--checkpoint", str(tmp_path / "odd.pt"), "--out", str(tmp_path / "odd.safetensors")])
    assert "--data is 5; expected a list, each a path" in capsys.readouterr().err
    best["config"]["data_options"]["data"] = "a/cells"  # as earlier versions had it
    save_checkpoint(tmp_path / "old.pt", best)
    main(["pack", "--checkpoint", str(tmp_path / "old.pt"), "--out", str(tmp_path / "old.safetensors")])
    assert load_checkpoint(tmp_path / "old.safetensors")["config"]["data_options"]["data"] == ["cells"]
    with pytest.raises(SystemExit):
        main(["pack", "--checkpoint", str(tiny_run / "best.pt"), "--out", str(tmp_path / "cells.pt")])
    assert "ends with .safetensors" in capsys.readouterr().err
