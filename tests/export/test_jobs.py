"""Which pictures a run predicts, and the names of their results."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.jobs import Opener, find_jobs
from tests.data.picture_files import OME
from tests.export.runs import small_pictures


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (["x/a.tif", "x/b.png"], ["a", "b"]),
        (["x/a.tif", "x/a.png"], ["a.tif", "a.png"]),
        (["x/a.tif", "y/a.tif"], ["a.tif", "a.tif-2"]),
        (["t/one/image.tif", "t/two/image.tif"], ["one", "two"]),
    ],
)
def test_each_picture_has_files_of_its_own(tmp_path: Path, files: list[str], keys: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / file, np.zeros((20, 30), np.uint8))
    jobs = find_jobs(InferConfig(Path("best.pt"), images=tuple(tmp_path / file for file in files)))
    assert [job.key for job in jobs] == keys
    assert [job.image_id for job in jobs] == list(range(1, len(files) + 1))


def test_a_page_and_a_picture_of_the_same_name_have_files_of_their_own(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((2, 20, 30), np.uint8), metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "s-1.tif", np.zeros((20, 30), np.uint8))
    for images in ((tmp_path,), (tmp_path / "s.tif", tmp_path / "s-1.tif")):
        keys = [job.key for job in find_jobs(InferConfig(Path("best.pt"), images=images))]
        assert len(set(keys)) == 3


def test_a_folder_given_twice_is_predicted_once(tmp_path: Path) -> None:
    small_pictures(tmp_path)
    jobs = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path, tmp_path / "b.png")))
    assert [job.key for job in jobs] == ["a", "b"]


def test_the_files_of_an_ome_set_are_predicted_once(tmp_path: Path) -> None:
    for number in range(2):
        pixels = np.full((70, 90), number, np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.ome.tif", pixels, description=OME.format(number), metadata=None)
    jobs = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))
    assert [(job.key, job.path.name, job.page) for job in jobs] == [
        ("0.ome", "0.ome.tif", 0),
        ("1.ome", "1.ome.tif", 1),
    ]
    alone = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path / "1.ome.tif",)))
    assert [(job.key, job.page) for job in alone] == [("1.ome_t0", 0), ("1.ome_t1", 1)]
    (tmp_path / "pictures").symlink_to(tmp_path)
    assert len(find_jobs(InferConfig(Path("best.pt"), images=(tmp_path / "pictures",)))) == 2


def test_a_link_to_a_picture_is_a_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), np.uint8))
    (tmp_path / "b.tif").symlink_to(tmp_path / "a.tif")
    assert [job.key for job in find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))] == ["a", "b"]


def test_pictures_are_not_decoded_to_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pictures(tmp_path)
    monkeypatch.setattr("maskrcnn.data.raster._decode", lambda *_, **__: pytest.fail("decoded"))
    assert len(find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))) == 2


def test_all_kinds_of_pictures_of_a_folder_are_taken_and_the_rest_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = [
        f"{number}.{ending}"
        for number, ending in enumerate(["svs", "ndpi", "lsm", "btf", "BMP", "tif", "PNG", "jpeg", "qptiff"])
    ]
    left = ["notes.txt", "a.csv", "b.csv", "a.tif.aux.xml", "a.tif:Zone.Identifier", "old.tif.bak", "README"]
    hidden = ["._0.tif", ".DS_Store", ".#a.tif"]
    for name in (*taken, *left, *hidden):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more.tif").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    jobs = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))
    assert [job.path.name for job in jobs] == sorted(taken)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {tmp_path}: left out what is no picture by its ending: 2 .csv, ")
    for kind in ("1 .txt", "1 .xml", "1 .bak", "1 without an ending", "1 folder", "1 .tif"):
        assert kind in line
    assert "DS_Store" not in line


def test_what_pillow_and_tifffile_write_is_taken(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    for ending in ("bmp", "png", "jpg", "webp", "ppm", "jp2"):
        Image.fromarray(pixels).save(tmp_path / f"{ending}.{ending}")
    for ending in ("tif", "btf", "svs", "lsm"):
        tifffile.imwrite(tmp_path / f"{ending}.{ending}", pixels, bigtiff=ending == "btf", photometric="rgb")
    config = InferConfig(Path("best.pt"), images=(tmp_path,))
    jobs = find_jobs(config)
    assert len(jobs) == 10
    assert {Opener(config, None)(job).size for job in jobs} == {(20, 30)}


def test_folders_of_image_tif_tell_what_they_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two", "empty", ".hidden"):
        (tmp_path / name).mkdir()
        if name != "empty":
            tifffile.imwrite(tmp_path / name / "image.tif", np.zeros((20, 30), np.uint8))
    jobs = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))
    assert [job.key for job in jobs] == ["one", "two"]
    assert "left out what is no picture by its ending: 1 folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere.tif", "x" * 300, "a\0b", "no pictures"])
def test_what_is_no_picture_and_no_folder_of_any_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "no pictures").mkdir()
    with pytest.raises(InputError, match=r"--images .*(no such file or folder|no picture)"):
        find_jobs(InferConfig(Path("best.pt"), images=(tmp_path / name,)))


def test_a_relative_picture_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cells" / "below").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "cells" / "image.tif", np.zeros((20, 30), np.uint8))
    for folder, path in (("cells", "image.tif"), ("cells/below", "../image.tif")):
        monkeypatch.chdir(tmp_path / folder)
        (job,) = find_jobs(InferConfig(Path("best.pt"), images=(Path(path),)))
        assert job.key == "cells"


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(InputError, match=f"--images {tmp_path}: cannot be listed: Permission denied"):
        find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))
