"""From a checkpoint to a submission, by the command line and by the Python interface."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import maskrcnn
from maskrcnn.data.hw3 import TestImage
from maskrcnn.errors import InputError
from maskrcnn.model import Detections
from maskrcnn.predict.export import check_results, write_results
from maskrcnn.predict.infer import InferConfig, infer, overlay_indices
from maskrcnn.predict.overlay import draw_overlay
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def results(tiny_run: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    return infer(InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=out, overlays=2, device="cpu"))


def test_the_submission_is_the_results_with_the_ids_of_the_mapping(results: Path, tiny_dataset: Path) -> None:
    entries = json.loads((results / "test-results.json").read_text())
    with zipfile.ZipFile(results / "submission.zip") as archive:
        assert archive.namelist() == ["test-results.json"]
        assert json.loads(archive.read("test-results.json")) == entries
    mapping = json.loads((tiny_dataset / "test_image_name_to_ids.json").read_text())
    sizes = {entry["id"]: [entry["height"], entry["width"]] for entry in mapping}
    assert entries
    for entry in entries:
        assert entry["segmentation"]["size"] == sizes[entry["image_id"]]
        assert entry["category_id"] in (1, 2, 3, 4)
        assert 0 <= entry["score"] <= 1
        assert coco_mask.decode(entry["segmentation"]).shape == tuple(sizes[entry["image_id"]])
    assert len(list((results / "overlays").glob("*.png"))) == 2
    assert not list(results.rglob("*.part"))


def test_three_lines_of_python_give_the_same_cells(results: Path, tiny_run: Path, tiny_dataset: Path) -> None:
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu")
    mapping = json.loads((tiny_dataset / "test_image_name_to_ids.json").read_text())
    cells = model(tiny_dataset / "test_release" / mapping[0]["file_name"])
    written = [e for e in json.loads((results / "test-results.json").read_text()) if e["image_id"] == mapping[0]["id"]]
    assert cells.to_coco(mapping[0]["id"]) == written
    assert cells.to_labels().shape == cells.size


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 4), (33, 86, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_of_any_kind_are_pictures(tiny_run: Path, shape: tuple[int, ...], dtype: type) -> None:
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu")
    array = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    assert model(array).size == shape[:2]


def test_pictures_without_a_mapping_are_numbered(tiny_run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("b.png", "a.jpg"):
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(tmp_path / name)
    out = infer(InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path / "out", overlays=-1, device="cpu"))
    entries = json.loads((out / "test-results.json").read_text())
    assert {entry["image_id"] for entry in entries} <= {1, 2}
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.png", "b.png"]


def _command(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "infer.py", *map(str, options), "--device", "cpu"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_bad_input_ends_with_one_line_and_status_2(
    tiny_run: Path, tiny_dataset: Path, results: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data, ignore=shutil.ignore_patterns("train"))
    picture = next((data / "test_release").iterdir())
    picture.write_bytes(picture.read_bytes()[:500])
    before = (results / "test-results.json").read_bytes()
    ended = _command("--checkpoint", tiny_run / "best.pt", "--data", data, "--out", results)
    assert ended.returncode == 2
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert picture.name in last
    assert "Traceback" not in ended.stderr
    assert (results / "test-results.json").read_bytes() == before


@pytest.mark.parametrize("options", [(), ("--data", "nowhere"), ("--images", "nowhere.png")])
def test_nothing_to_predict(tiny_run: Path, options: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"--data|nowhere"):
        infer(
            InferConfig(
                tiny_run / "best.pt",
                data=Path("nowhere") if "--data" in options else None,
                images=(Path("nowhere.png"),) if "--images" in options else (),
            )
        )


def _detections(count: int = 2) -> Detections:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 24.0], [10.0, 8.0, 40.0, 30.0]])[:count]
    return Detections(
        boxes,
        torch.tensor([0.9, 0.8])[:count],
        torch.tensor([1, 3])[:count],
        torch.ones(count, 28, 28),
        (48, 64),
    )


def test_results_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    image = TestImage(Path("a.tif"), "a.tif", 7, 48, 64)
    entries = _detections().to_coco(7)
    write_results(tmp_path, entries, [image], num_classes=4)
    wrong = [{**entries[0], "category_id": 5}]
    with pytest.raises(RuntimeError, match="does not fit"):
        check_results(wrong, [image], num_classes=4)
    with pytest.raises(RuntimeError, match="does not fit"):
        check_results(entries, [TestImage(Path("a.tif"), "a.tif", 7, 64, 48)], num_classes=4)
    write_results(tmp_path, [], [image], num_classes=4)
    assert json.loads((tmp_path / "test-results.json").read_text()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_results(tmp_path / "file", [], [], num_classes=1)


def test_overlays_colour_the_cells_and_leave_the_rest() -> None:
    image = torch.full((48, 64, 3), 100, dtype=torch.uint8)
    picture = np.asarray(draw_overlay(image, _detections(), ["class1", "class2", "class3"], shortest_side=48))
    assert picture.shape[1] == 64
    assert (picture[1, 1] == 100).all()
    inside = picture[14, 8].astype(int)
    assert inside[0] > 100 > inside[2]  # yellow fill over grey
    large = draw_overlay(image, _detections(0), ["class1"], shortest_side=96)
    assert large.size[0] == 128


def test_higher_scores_lie_on_top_in_label_images() -> None:
    labels = _detections().to_labels()
    assert labels.shape == (48, 64)
    assert labels[15, 15] == 1  # both cover this pixel; the first has the higher score
    assert labels[15, 35] == 2
    assert labels[40, 60] == 0


def test_overlays_are_spread_over_the_pictures() -> None:
    assert overlay_indices(10, 0) == set()
    assert overlay_indices(10, 3) == {0, 4, 9}
    assert overlay_indices(3, -1) == overlay_indices(3, 8) == {0, 1, 2}
