"""Runs that are stopped and resumed; results of other options and other pictures."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from tests.conftest import ROOT
from tests.export.runs import command, one_picture, records


def test_a_run_that_was_stopped_goes_on(tiny_run: Path, tiny_dataset: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    first, *others = sorted((out / "cells").iterdir())
    first.unlink()
    (out / "test-results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in others}
    config = InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=out, device="cpu")
    infer(config)
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert (out / "test-results.json").read_bytes() == (results / "test-results.json").read_bytes()
    infer(replace(config, overwrite=True))
    assert all(path.stat().st_mtime_ns > before[path] for path in others)
    assert (out / "test-results.json").read_bytes() == (results / "test-results.json").read_bytes()


@pytest.mark.usefixtures("quick")
def test_another_picture_of_the_same_name_is_predicted(tiny_run: Path, tmp_path: Path) -> None:
    """The results go beside the checkpoint by default, so runs on several folders meet there."""
    first, second = one_picture(tmp_path / "x" / "a.png", 0), one_picture(tmp_path / "y" / "a.png", 1, height=90)
    config = InferConfig(tiny_run / "best.pt", images=(first,), out=tmp_path / "out", device="cpu")
    infer(config)
    infer(replace(config, images=(second,)))
    assert records(tmp_path / "out")["a"]["height"] == 90
    one_picture(second, 2, height=70)
    infer(replace(config, images=(second,)))
    assert records(tmp_path / "out")["a"]["height"] == 70


@pytest.mark.usefixtures("quick")
def test_files_of_a_picture_that_was_replaced_are_not_left(tiny_run: Path, tmp_path: Path) -> None:
    """Also those in formats that this run does not write: a later one would take them for complete."""
    out, path = tmp_path / "out", one_picture(tmp_path / "a.png", 0)
    config = InferConfig(tiny_run / "best.pt", images=(path,), out=out, device="cpu", format=("labels", "csv"))
    infer(config)
    one_picture(path, 1, height=90)
    infer(replace(config, format=("labels",)))
    assert not (out / "csv" / "a.csv").exists()
    infer(config)
    assert (out / "csv" / "a.csv").exists()
    written = (out / "labels" / "a.tif").stat().st_mtime_ns
    infer(replace(config, format=("csv",)))
    assert (out / "labels" / "a.tif").stat().st_mtime_ns == written  # nothing is predicted, nothing removed


@pytest.mark.usefixtures("quick")
def test_a_picture_that_comes_later_moves_the_ids_of_the_others(tiny_run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    one_picture(folder / "b.png", 0)
    config = InferConfig(tiny_run / "best.pt", images=(folder,), out=out, device="cpu")
    assert infer(config).cells
    one_picture(folder / "a.png", 1, height=90)
    infer(config)
    results = json.loads((out / "test-results.json").read_text())
    assert {(r["image_id"], r["segmentation"]["size"][0]) for r in results} == {(1, 90), (2, 64)}


def test_overwriting_that_is_stopped_leaves_nothing_of_other_options(
    tiny_run: Path, tiny_dataset: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    config = InferConfig(tiny_run / "last.pt", data=tiny_dataset, out=out, overwrite=True, device="cpu")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("maskrcnn.export.infer._predict_all", stop)
        with pytest.raises(KeyboardInterrupt):
            infer(config)
    assert not records(out)
    assert not [name for name in ("test-results.json", "submission.zip", "report.html") if (out / name).exists()]
    infer(replace(config, overwrite=False))
    assert len(records(out)) == 3


def test_results_of_other_options_are_not_mixed(tiny_run: Path, tiny_dataset: Path, results: Path) -> None:
    before = (results / "test-results.json").read_bytes()
    with pytest.raises(InputError, match=r"results of another augment; choose another --out, or --overwrite"):
        infer(InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=results, augment="flips", device="cpu"))
    with pytest.raises(InputError, match="another checkpoint"):
        infer(InferConfig(tiny_run / "last.pt", data=tiny_dataset, out=results, device="cpu"))
    assert (results / "test-results.json").read_bytes() == before


@pytest.mark.parametrize(
    "option",
    [
        {"tile": 64},
        {"overlap": 16},
        {"augment": "flips"},
        {"channels": (0, 1, 2)},
        {"precision": "fp32"},
        {"diameter": 20.0},
        {"score_threshold": 0.7},
        {"box_score_threshold": 0.1},
    ],
)
def test_each_option_that_changes_cells_is_compared(
    tiny_run: Path, tiny_dataset: Path, results: Path, option: dict[str, Any]
) -> None:
    config = InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=results, device="cpu", **option)
    (name,) = option
    with pytest.raises(InputError, match=f"holds results of another {name}; choose another --out, or --overwrite"):
        infer(config)


@pytest.mark.usefixtures("quick")
def test_a_model_file_that_changed_is_another_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    """Under the same name too; --overwrite gives up the results of the earlier one."""
    shutil.copy(tiny_run / "best.pt", tmp_path / "best.pt")
    one_picture(tmp_path / "a.png", 0)
    one_picture(tmp_path / "b.png", 1)
    config = InferConfig(tmp_path / "best.pt", images=(tmp_path,), out=tmp_path / "out", device="cpu")
    infer(config)
    shutil.copy(tiny_run / "last.pt", tmp_path / "best.pt")
    with pytest.raises(InputError, match="holds results of another checkpoint; choose another --out, or --overwrite"):
        infer(config)
    infer(replace(config, images=(tmp_path / "b.png",), overwrite=True))
    assert set(records(tmp_path / "out")) == {"b"}


def _finished(folder: Path, run: Path) -> InferConfig:
    """A run on three pictures that is done."""
    for number, name in enumerate("abc"):
        one_picture(folder / "pictures" / f"{name}.png", number)
    config = InferConfig(run / "best.pt", images=(folder / "pictures",), out=folder / "out", device="cpu")
    assert not infer(config).failures
    return config


DAMAGED = [b"", b'{"name": "a', b"{}", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b"half", b"other cells"]


@pytest.mark.parametrize("contents", DAMAGED)
@pytest.mark.usefixtures("quick")
def test_a_damaged_record_is_predicted_anew(tiny_run: Path, tmp_path: Path, contents: bytes) -> None:
    config = _finished(tmp_path, tiny_run)
    damaged, *others = sorted((tmp_path / "out" / "cells").iterdir())
    results = (tmp_path / "out" / "test-results.json").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in others}
    complete = damaged.read_bytes()
    other = {**json.loads(complete), "results": [{"score": 1}]}
    of = {b"half": complete[: len(complete) // 2], b"other cells": json.dumps(other).encode()}
    damaged.write_bytes(of.get(contents, contents))
    assert not infer(config).failures
    assert damaged.read_bytes() == complete
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert (tmp_path / "out" / "test-results.json").read_bytes() == results


@pytest.mark.parametrize("contents", [b"", b'{"checkpoint": "12', b"[]", b"\xff", None])
@pytest.mark.usefixtures("quick")
def test_results_of_options_that_are_not_known_are_not_mixed(
    tiny_run: Path, tmp_path: Path, contents: bytes | None
) -> None:
    config = _finished(tmp_path, tiny_run)
    options = tmp_path / "out" / "infer.json"
    before = options.read_bytes()
    options.unlink()
    if contents is not None:
        options.write_bytes(contents)
    with pytest.raises(InputError, match=r"results of unknown options \(infer.json is missing or damaged\); choose"):
        infer(config)
    assert len(records(tmp_path / "out")) == 3
    infer(replace(config, overwrite=True))
    assert options.read_bytes() == before
    for path in (tmp_path / "out" / "cells").iterdir():
        path.unlink()
    options.write_bytes(contents or b"")
    assert not infer(config).failures  # there is nothing that could be mixed


@pytest.mark.usefixtures("quick")
def test_two_runs_do_not_write_into_one_folder(
    tiny_run: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=tmp_path, device="cpu")

    def second(*_: object) -> None:
        with pytest.raises(InputError, match=r"in use by process \d+ on .*; wait until it ends, or choose"):
            infer(replace(config, overwrite=True))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("maskrcnn.export.infer._predict_all", second)
        with pytest.raises(KeyboardInterrupt):
            infer(config)
    assert not infer(config).failures  # the lock went with the run


@pytest.mark.slow
def test_stopped_by_a_signal_finished_pictures_stay(tiny_run: Path, tmp_path: Path) -> None:
    """SIGTERM, and Ctrl-C twice: what is recorded is whole, and the next run does the rest."""
    for number in range(12):
        one_picture(tmp_path / "pictures" / f"{number:02}.png", number)
    out = tmp_path / "out"
    options = ["--checkpoint", tiny_run / "best.pt", "--images", tmp_path / "pictures", "--out", out]
    options += ["--diameter", "none", "--device", "cpu"]
    whole: dict[str, bytes] = {}
    for signals in ((signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)):
        process = subprocess.Popen(
            [sys.executable, "infer.py", *map(str, options)], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and len(list(out.glob("cells/*.json"))) < len(whole) + 2:
            time.sleep(0.02)
        for number in signals:
            process.send_signal(number)
        assert process.wait() != 0
        found = {path.name: path.read_bytes() for path in out.glob("cells/*.json")}
        assert len(whole) + 2 <= len(found) < 12
        assert whole.items() <= found.items()
        assert all(json.loads(text)["height"] == 64 for text in found.values())
        whole = found
    done = command(*options[:-2])
    assert done.returncode == 0, done.stderr
    assert len(records(out)) == 12
    assert all((out / "cells" / name).read_bytes() == text for name, text in whole.items())
