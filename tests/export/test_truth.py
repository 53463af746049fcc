"""The ground truth for the report, which is checked before any picture is predicted."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.export.jobs import find_jobs
from maskrcnn.export.truth import Truth


def _config(run: Path, images: Path, truth: Path, out: Path) -> InferConfig:
    return InferConfig(run / "best.pt", images=(images,), truth=truth, out=out, format=(), report=True, device="cpu")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"--truth: .*nowhere: no such folder"),
        ("empty", r"--truth: .*empty: no folder with an image.tif found"),
        ("lacks", r"--truth .*lacks: no folder 0\S+ for .*image.tif, and none for 3 more"),
        ("fifth class", r"--truth: .*class5.tif: class 5, but there are 4 classes"),
    ],
)
def test_truth_that_does_not_fit_is_told_before_the_first_picture(
    tiny_run: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    images = tmp_path / "images"
    folders = sorted((tiny_dataset / "train").iterdir())
    for folder in folders[:5]:
        shutil.copytree(folder, images / f"0{folder.name}")
    truth = tmp_path / {"missing": "nowhere"}.get(fault, fault)
    if fault == "empty":
        truth.mkdir()
    elif fault == "lacks":
        shutil.copytree(images / f"0{folders[0].name}", truth / f"0{folders[0].name}")
    elif fault == "fifth class":
        shutil.copytree(images, truth)
        shutil.copy(truth / f"0{folders[0].name}" / "image.tif", truth / f"0{folders[0].name}" / "class5.tif")
    monkeypatch.setattr("maskrcnn.export.infer._predict_all", lambda *_: pytest.fail("predicted"))
    with pytest.raises(InputError, match=message):
        infer(_config(tiny_run, images, truth, tmp_path / "out"))


@pytest.mark.usefixtures("quick")
def test_invalid_truth_affects_only_the_scores_of_its_picture(
    tiny_run: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """One of another size, one that is damaged: both are shown without true cells, and named."""
    images, truth = tmp_path / "images", tmp_path / "truth"
    for folder in sorted((tiny_dataset / "train").iterdir())[:4]:
        shutil.copytree(folder, images / folder.name)
    shutil.copytree(images, truth)
    larger, damaged, *_ = sorted(truth.iterdir())
    for path in larger.iterdir():
        tifffile.imwrite(path, np.ones((50, 60), np.uint8))
    (damaged / "class1.tif").write_bytes(b"II*\0")
    outcome = infer(_config(tiny_run, images, truth, tmp_path / "out"))
    assert set(outcome.failures) == {larger.name, damaged.name}
    with (tmp_path / "out" / "failures.csv").open() as file:
        rows = {row["picture"]: row["error"] for row in csv.DictReader(file)}
    assert "has 50x60 pixels, but" in rows[larger.name]
    assert "class1.tif" in rows[damaged.name]
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"pictures":2,' in page
    assert f'title="{larger.name}/image.tif"' in page  # pictures that are all called image.tif are told apart
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 4


@pytest.mark.parametrize("num_classes", [1, 4])
def test_true_cells_are_those_of_the_files(tiny_dataset: Path, num_classes: int) -> None:
    """A network of one class takes all classes of the files as one."""
    jobs = find_jobs(InferConfig(Path("best.pt"), images=(tiny_dataset / "train",)))
    truth, dataset = Truth(tiny_dataset, num_classes, jobs), Hw3Folder(tiny_dataset)
    for index, job in enumerate(jobs):
        labels = dataset.read_labels(index)
        cells = truth.read(job, labels.size)
        assert [cell["area"] for cell in cells] == labels.areas.tolist()
        assert [cell["category_id"] for cell in cells] == [min(k, num_classes) for k in labels.classes.tolist()]
