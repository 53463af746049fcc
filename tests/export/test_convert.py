"""Cells in other formats are the same cells: those of infer.py's own files, of training data, and of label images."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import roifile
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from skimage.draw import polygon2mask

import maskrcnn
from maskrcnn.cli import main
from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.convert import ConvertConfig, convert
from maskrcnn.export.infer import infer
from maskrcnn.structures import Cells
from tests.export.runs import one_picture, small_pictures


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What infer.py writes for two small pictures and a stack."""
    folder = tmp_path_factory.mktemp("pictures")
    example = Path(maskrcnn.__file__).parent / "pretrained" / "examples" / "fluorescence.png"
    (folder / "cells.png").write_bytes(example.read_bytes())
    small_pictures(folder)
    pages = np.random.default_rng(0).integers(0, 255, (2, 40, 60), dtype=np.uint8)
    tifffile.imwrite(folder / "c.tif", pages, metadata={"axes": "ZYX"})
    out = tmp_path_factory.mktemp("predicted")
    infer(InferConfig(images=(folder,), out=out, device="cpu", format=("labels", "class-labels", "geojson", "csv")))
    return out


def test_results_have_the_files_that_infer_writes(predicted: Path, tmp_path: Path) -> None:
    convert(ConvertConfig(tmp_path, ("labels", "class-labels", "geojson", "csv"), results=predicted))
    expected = [p for kind in ("labels", "class-labels", "geojson", "csv") for p in (predicted / kind).rglob("*.*")]
    assert len(expected) == 5 * 4
    for path in expected:
        assert (tmp_path / path.relative_to(predicted)).read_bytes() == path.read_bytes(), path


def test_a_score_may_be_chosen(predicted: Path, tmp_path: Path) -> None:
    options = ["--results", predicted, "--out", tmp_path, "--format", "labels", "--score-threshold", "0.98"]
    main(["convert", *map(str, options)])
    few, all_cells = (
        len(np.unique(tifffile.imread(folder / "labels" / "cells.tif"))) for folder in (tmp_path, predicted)
    )
    assert 10 < few < all_cells


def test_rois_of_run_lengths_enclose_their_pixels(predicted: Path, tmp_path: Path) -> None:
    convert(ConvertConfig(tmp_path, ("rois", "coco"), results=predicted))
    coco = COCO(str(tmp_path / "annotations.json"))
    (image,) = (image for image in coco.imgs.values() if image["file_name"].endswith("cells.png"))
    assert (tmp_path / image["file_name"]).resolve().is_file()
    least = json.loads((predicted / "infer.json").read_text())["least_scores"][0]
    cells = [cell for cell in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])) if cell["score"] >= least]
    rois = roifile.roiread(tmp_path / "rois" / "cells.zip")
    assert len(rois) == len(cells) > 40
    for roi, cell in zip(rois, cells, strict=True):
        mask = coco_mask.decode(cell["segmentation"]).astype(bool)
        assert cell["area"] == mask.sum()
        if len(roi.coordinates(multi=True)) == 1:
            inside = polygon2mask(mask.shape, roi.coordinates()[:, ::-1] - 0.5)
            np.testing.assert_array_equal(inside, mask)


def test_training_data_to_coco_and_back(tiny_dataset: Path, tmp_path: Path) -> None:
    convert(ConvertConfig(tmp_path / "coco", ("coco",), data=tiny_dataset))
    convert(ConvertConfig(tmp_path / "hw3", ("class-labels", "csv"), coco=tmp_path / "coco" / "annotations.json"))
    folder = Hw3Folder(tiny_dataset)
    for index, name in enumerate(folder.names):
        labels = folder.labels(index)
        rows = (tmp_path / "hw3" / "csv" / f"{name}.csv").read_text().splitlines()
        assert len(rows) == 1 + len(labels)
        planes = [tifffile.imread(tmp_path / "hw3" / "class-labels" / name / f"class{k}.tif") for k in (1, 2, 3, 4)]
        for number, (rle, label) in enumerate(zip(labels.to_rle(), labels.classes.tolist(), strict=True), start=1):
            np.testing.assert_array_equal(planes[label - 1] == number, coco_mask.decode(rle).astype(bool))


def test_label_images_of_other_programs(tmp_path: Path) -> None:
    image = np.zeros((40, 50), np.int32)
    image[5:15, 10:20], image[20:30, 5:9], image[21:23, 30:33] = 7, 70_000, 3
    tifffile.imwrite(tmp_path / "a_cp_masks.tif", image)
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((8, 9), np.uint8))
    out = tmp_path / "out"
    assert convert(ConvertConfig(out, ("geojson", "labels", "rois"), labels=(tmp_path,))) == 3
    assert len(json.loads((out / "geojson" / "a_cp_masks.geojson").read_text())["features"]) == 3
    written = tifffile.imread(out / "labels" / "a_cp_masks.tif")
    assert [np.unique(image[written == k]).tolist() for k in (1, 2, 3)] == [[3], [7], [70_000]]
    assert json.loads((out / "geojson" / "b.geojson").read_text())["features"] == []


def test_label_images_become_training_data_of_their_pictures(tmp_path: Path) -> None:
    """Not of the label images themselves."""
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    for folder in (pictures, masks):
        folder.mkdir()
    labels = np.zeros((50, 70), np.uint8)
    labels[5:15, 10:20] = 9
    for name in ("a_cp_masks.tif", "a1_cp_masks.tif", "b.tif"):
        tifffile.imwrite(masks / name, labels)
    small_pictures(pictures)
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(pictures / "a1.png")
    config = ConvertConfig(tmp_path / "out", ("coco",), labels=(masks,), image_root=pictures)
    assert convert(config) == 3
    data = CocoDataset(tmp_path / "out" / "annotations.json")
    assert [Path(name).name for name in data.names] == ["a1.png", "a.jpg", "b.png"]
    assert [len(data[index].labels) for index in range(3)] == [1, 1, 1]
    with pytest.raises(InputError, match=r"a1_cp_masks\.tif: its picture in .*masks has a name .* found: none"):
        convert(dataclasses.replace(config, image_root=None))
    shutil.copy(pictures / "a1.png", pictures / "b.tiff")
    with pytest.raises(InputError, match=r"found: b\.png and b\.tiff; expected one"):
        convert(config)


def test_a_name_with_characters_that_cannot_be_shown(tmp_path: Path) -> None:
    """Such as the narrow no-break space in the names of macOS's screenshots, or a byte that is not UTF-8."""
    for name in ("at 1.00\u202fPM.png", "b\udcff.png"):
        one_picture(tmp_path / "pictures" / name, 0)
    out = tmp_path / "out"
    infer(InferConfig(images=(tmp_path / "pictures",), out=out, device="cpu", format=("csv",), diameter=20.0))
    convert(ConvertConfig(tmp_path / "more", ("csv",), results=out))
    for path in (out / "csv").iterdir():
        assert (tmp_path / "more" / "csv" / path.name).read_bytes() == path.read_bytes()


def test_intensities_of_two_channels(tmp_path: Path) -> None:
    """The mean of both, without the black third colour that the network sees."""
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    pixels = np.stack([np.full((40, 50), value, np.uint16) for value in (300, 600)])
    tifffile.imwrite(folder / "image.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack")
    labels = np.zeros((40, 50), np.uint8)
    labels[5:15, 10:20] = 1
    tifffile.imwrite(folder / "class1.tif", labels)
    config = ConvertConfig(tmp_path / "out", ("csv",), data=tmp_path)
    with pytest.raises(InputError, match="2 channels; choose one to three of them with --channels"):
        convert(config)
    convert(dataclasses.replace(config, channels=(0, 1)))
    with (tmp_path / "out" / "csv" / "a.csv").open() as file:
        assert [float(row["mean_intensity"]) for row in csv.DictReader(file)] == [450]


def test_cells_of_results_are_those_that_were_written() -> None:
    rles = [coco_mask.encode(np.asfortranarray(np.eye(6, 8, k, dtype=np.uint8))) for k in range(3)]
    cells = Cells.of_masks([{"size": [6, 8], "counts": rle["counts"]} for rle in rles], [1, 2, 1], (6, 8))
    again = Cells.of_results(cells.to_coco(1), (6, 8))
    assert torch.equal(again.boxes, cells.boxes)
    assert again.to_coco(1) == cells.to_coco(1)
    assert again.filter([0.5, 2.0]).labels.tolist() == [1, 1]
    assert len(Cells.of_results([], (6, 8)).filter(0.5)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "given: no cells; expected one of --results, --data, --coco, --labels"),
        ({"data": Path("a"), "coco": Path("b")}, "given: --data and --coco"),
        ({"labels": (Path("a"),), "format": ("csv",)}, "--format csv measures pictures"),
        ({"data": Path("a"), "score_threshold": 0.5}, "--score-threshold is for --results"),
        ({"data": Path("a"), "image_root": Path("b")}, "--image-root is for --coco"),
        ({"data": Path("a"), "channels": (0,)}, "--channels is for --format csv of --data or --coco"),
        ({"results": Path("nowhere")}, "--results nowhere: holds no results"),
        ({"labels": (Path("nowhere"),)}, "--labels nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_converted(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        convert(ConvertConfig(**{"out": tmp_path, "format": ("coco",), **options}))


def test_a_picture_that_has_changed(predicted: Path, tmp_path: Path) -> None:
    other = tmp_path / "results"
    (other / "cells").mkdir(parents=True)
    record = json.loads((predicted / "cells" / "a.json").read_text())
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 6), np.uint8))
    record["source"][0] = str(tmp_path / "a.tif")
    (other / "cells" / "a.json").write_text(json.dumps(record))
    (other / "infer.json").write_text((predicted / "infer.json").read_text())
    with pytest.raises(InputError, match="5x6 pixels, but its cells are of a picture of 50x70"):
        convert(ConvertConfig(tmp_path / "out", ("csv",), results=other))
    (other / "infer.json").write_text("{}")
    with pytest.raises(InputError, match="did not keep the names of classes"):
        convert(ConvertConfig(tmp_path / "out", ("csv",), results=other))
