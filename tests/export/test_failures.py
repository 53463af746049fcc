"""Pictures that cannot be read and files that cannot be written: the others have their results."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import maskrcnn.export.infer
import maskrcnn.export.picture_files
from maskrcnn.data.picture import Picture
from maskrcnn.errors import InputError, writing
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.export.run_folder import FILES
from tests.export.runs import ALL, command, one_picture, records


def test_broken_pictures_are_passed_over_and_named(tiny_run: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(tiny_dataset, data, ignore=shutil.ignore_patterns("train"))
    broken, small, _ = sorted((data / "test_release").iterdir())
    contents = broken.read_bytes()
    broken.write_bytes(contents[:500])
    tifffile.imwrite(small, np.zeros((20, 30), np.uint8))
    ended = command("--checkpoint", tiny_run / "best.pt", "--data", data, "--out", out)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"warning: passed over: {broken}" in ended.stderr
    with (out / "failures.csv").open() as file:
        rows = {row["picture"]: row["error"] for row in csv.DictReader(file)}
    assert set(rows) == {broken.stem, small.stem}
    assert "20x30 pixels, but the id mapping says 96x96" in rows[small.stem]
    with zipfile.ZipFile(out / "submission.zip") as archive:
        mapping = json.loads((data / "test_image_name_to_ids.json").read_text())
        ids = {entry["id"] for entry in mapping if entry["file_name"] not in (broken.name, small.name)}
        assert {result["image_id"] for result in json.loads(archive.read("test-results.json"))} <= ids
    assert not list(out.rglob(f"{broken.stem}*"))
    broken.write_bytes(contents)
    small.write_bytes((tiny_dataset / "test_release" / small.name).read_bytes())
    assert command("--checkpoint", tiny_run / "best.pt", "--data", data, "--out", out).returncode == 0
    assert not (out / "failures.csv").exists()


@pytest.mark.usefixtures("quick")
def test_a_picture_that_breaks_leaves_no_results_of_its_old_self(tiny_run: Path, tmp_path: Path) -> None:
    picture, out = one_picture(tmp_path / "a.png", 0), tmp_path / "out"
    one_picture(tmp_path / "b.png", 1)
    config = InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=out, format=ALL, device="cpu")
    infer(config)
    assert len(list(out.glob("*/a*"))) == 1 + len(FILES)  # the record, and a file or folder of each format
    picture.write_bytes(picture.read_bytes()[:100])
    assert set(infer(config).failures) == {"a"}
    assert not [path for path in out.rglob("*") if path.is_file() and "a" in (path.stem, path.parent.name)]
    assert len(list((out / "class-labels" / "b").iterdir())) == 4


def _failures(out: Path) -> dict[str, str]:
    with (out / "failures.csv").open(newline="", encoding="utf-8") as file:
        return {row["picture"]: row["error"] for row in csv.DictReader(file)}


def _config(run: Path, folder: Path, **options: Any) -> InferConfig:
    return InferConfig(run / "best.pt", images=(folder,), out=folder / "out", format=ALL, device="cpu", **options)


NAMES = {
    os.fsdecode(b"latin \xe9.png"): r"latin \udce9",
    "x" * 251 + ".png": "x" * 251,
    "é" * 125 + "y.png": "é" * 125 + "y",
    "two\nlines.png": r"two\nlines",
    '=HYPERLINK("http:;evil","x").png': '\'=HYPERLINK("http:;evil","x")',
    "<script>alert(1)<;script>&'\".png": "<script>alert(1)<;script>&'\"",
    "\x1b[31mred.png": r"\x1b[31mred",
    "{key} %s $title ${x}.png": "{key} %s $title ${x}",
    "...png": "...png",
    "~.png": "~",
}
"""Files and what the tables call them."""


@pytest.mark.usefixtures("quick")
def test_pictures_of_any_name_have_results_inside_the_folder(tiny_run: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        one_picture(tmp_path / "pictures" / "picture.png", number).rename(tmp_path / "pictures" / name)
    config = _config(tiny_run, tmp_path / "pictures", report=True)
    config = replace(config, images=tuple(tmp_path / "pictures" / name for name in NAMES), out=tmp_path / "run" / "out")
    assert not infer(config).failures
    out = tmp_path / "run" / "out"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["out"]
    expected = {"cells", *(path.split("/")[0] for path in FILES.values())}
    assert {path.name for path in out.iterdir() if path.is_dir()} == expected
    for folder in expected:
        assert len(list((out / folder).iterdir())) == len(NAMES), folder
    for path in [*out.rglob("*.json"), *out.rglob("*.geojson")]:
        json.dumps(json.loads(path.read_bytes()), ensure_ascii=False).encode()  # no half of a surrogate pair
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    infer(config)
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before


@pytest.mark.usefixtures("quick")
def test_broken_pictures_of_any_name_are_named_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    one_picture(folder / "good.png", 0)
    for name in NAMES:
        (folder / name).write_bytes(b"no picture")
    config = replace(_config(tiny_run, folder), images=(folder / "good.png", *(folder / name for name in NAMES)))
    assert len(infer(config).failures) == len(NAMES)
    assert set(_failures(folder / "out")) == set(NAMES.values())
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: passed over: ")]
    assert len(warnings) == len(NAMES)
    assert set(records(folder / "out")) == {"good"}


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), ZeroDivisionError("a\nb"), AssertionError(), struct.error("unpack")]
)
@pytest.mark.usefixtures("quick")
def test_whatever_a_decoder_raises_costs_its_picture_alone(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    for number, name in enumerate("abc"):
        one_picture(tmp_path / f"{name}.png", number)
    raw = Picture.raw

    def broken(picture: Picture, *region: int) -> Any:
        if picture.name == "b.png":
            raise error
        return raw(picture, *region)

    monkeypatch.setattr(Picture, "raw", broken)
    assert set(infer(_config(tiny_run, tmp_path, report=True)).failures) == {"b"}
    assert set(records(tmp_path / "out")) == {"a", "c"}
    (line,) = _failures(tmp_path / "out").values()
    assert line.startswith(f"{tmp_path / 'b.png'}: {type(error).__name__}: ")
    assert "(test_failures.py, line " in line
    assert f"warning: passed over: {line}" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_stopping_is_no_failure(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_picture(tmp_path / "a.png", 0)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Picture, "raw", stop)
    with pytest.raises(KeyboardInterrupt):
        infer(_config(tiny_run, tmp_path))


@pytest.mark.parametrize(
    "file", ["labels/b.tif", "geojson/b.geojson", "csv/b.csv", "overlays/b.png", "class-labels/b", "cells/b.json"]
)
@pytest.mark.usefixtures("quick")
def test_files_that_cannot_be_written_affect_only_their_picture(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    """A folder where a file should be, or a file where a folder should be; other people's things stay."""
    for number, name in enumerate("abc"):
        one_picture(tmp_path / f"{name}.png", number)
    blocked = tmp_path / "out" / file
    if file == "class-labels/b":
        blocked.parent.mkdir(parents=True)
        blocked.write_text("theirs")
    else:
        (blocked / "theirs").mkdir(parents=True)
    assert set(infer(_config(tiny_run, tmp_path)).failures) == {"b"}
    assert f"{blocked}" in _failures(tmp_path / "out")["b"]
    assert "cannot be written" in capsys.readouterr().err
    assert blocked.exists()
    kept = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and "b" in (path.stem, path.parent.name)]
    assert kept == ([blocked] if blocked.is_file() else [])
    assert set(records(tmp_path / "out") if file != "cells/b.json" else {"a", "c"}) == {"a", "c"}
    assert {path.stem for path in (tmp_path / "out" / "labels").iterdir() if path.is_file()} == {"a", "c"}


@pytest.mark.parametrize("file", ["report.html", "test-results.json", "failures.csv"])
@pytest.mark.usefixtures("quick")
def test_a_file_about_all_pictures_that_cannot_be_written_costs_no_other(
    tiny_run: Path, tmp_path: Path, file: str
) -> None:
    one_picture(tmp_path / "a.png", 0)
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "out" / file).mkdir(parents=True)
    with pytest.raises(InputError, match=f"{file}: cannot be written"):
        infer(_config(tiny_run, tmp_path, report=True))
    for other in {"report.html", "test-results.json", "failures.csv"} - {file}:
        assert (tmp_path / "out" / other).is_file()


@pytest.mark.usefixtures("quick")
def test_a_full_disk_ends_the_run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other picture could be written either; what is finished stays."""
    for number, name in enumerate("abc"):
        one_picture(tmp_path / f"{name}.png", number)
    write = maskrcnn.export.picture_files.write_labels

    def full(path: Path, cells: Any, micrometres: float | None) -> None:
        if path.name != "a.tif":
            with writing(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write(path, cells, micrometres)

    monkeypatch.setattr("maskrcnn.export.picture_files.write_labels", full)
    with pytest.raises(InputError, match=r"b\.tif: cannot be written: No space left on device"):
        infer(_config(tiny_run, tmp_path))
    assert set(records(tmp_path / "out")) == {"a"}


@pytest.mark.usefixtures("quick")
def test_a_picture_that_vanishes_is_left_out_of_the_report(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("ab"):
        one_picture(tmp_path / f"{name}.png", number)
    write = maskrcnn.export.infer.finish

    def later(*arguments: Any) -> int:
        (tmp_path / "a.png").unlink()
        return write(*arguments)

    monkeypatch.setattr("maskrcnn.export.infer.finish", later)
    assert set(infer(_config(tiny_run, tmp_path, report=True)).failures) == {"a"}
    assert "the report is without" not in _failures(tmp_path / "out")["a"]
    assert set(records(tmp_path / "out")) == {"a", "b"}
    assert 'title="b.png"' in (tmp_path / "out" / "report.html").read_text()
