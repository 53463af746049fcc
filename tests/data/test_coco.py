"""COCO files: what is written pycocotools reads, and what COCO files hold is read back."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.data.coco import CocoDataset, to_coco
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.joined import JoinedDataset
from maskrcnn.engine.config import DataOptions, TrainConfig
from maskrcnn.engine.datasets import build_datasets
from maskrcnn.errors import InputError
from maskrcnn.export.convert import ConvertConfig, convert
from tests.data.mutations import mutated


@pytest.fixture(scope="module")
def converted(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("coco")
    options = ["--data", str(tiny_dataset), "--out", str(out), "--format", "coco"]
    subprocess.run([sys.executable, "-m", "maskrcnn", "convert", *options], check=True)
    return out / "annotations.json"


def test_pycocotools_loads_what_is_converted(converted: Path, tiny_dataset: Path) -> None:
    coco, data = COCO(str(converted)), Hw3Folder(tiny_dataset)
    assert len(coco.imgs) == len(data)
    assert sorted(coco.cats) == [1, 2, 3, 4]
    for index in range(3):
        labels = data.labels(index)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[data.image_ids[index]]))
        assert len(annotations) == len(labels)
        for number, annotation in enumerate(annotations):
            mask = coco.annToMask(annotation)
            assert np.array_equal(mask.astype(bool), labels.mask(number).numpy())
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
            assert annotation["category_id"] == labels.classes[number]


def test_reads_what_it_wrote(converted: Path, tiny_dataset: Path) -> None:
    folder = Hw3Folder(tiny_dataset)
    read = CocoDataset(converted)  # the file names the pictures relative to itself
    assert read.class_names == folder.class_names
    for index in range(3):
        ours, theirs = read[index], folder[index]
        assert torch.equal(ours.image, theirs.image)
        assert ours.labels.to_rle() == theirs.labels.to_rle()
        assert torch.equal(ours.labels.classes, theirs.labels.classes)
        assert torch.equal(ours.labels.boxes, theirs.labels.boxes)


def write(path: Path, annotations: list[dict], **changes: object) -> Path:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path.parent / "a.png")
    contents = {
        "images": [{"id": 5, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 17, "name": "dot"}, {"id": 3, "name": "ring"}],
        "annotations": annotations,
    }
    path.write_text(json.dumps(contents | changes))
    return path


SQUARE = {"segmentation": [[2, 3, 12, 3, 12, 9, 2, 9]], "iscrowd": 0, "image_id": 5}


def test_polygons_runs_crowds_and_overlaps(tmp_path: Path) -> None:
    runs = {"size": [20, 30], "counts": [21, 4, 600 - 25]}
    annotations = [
        {**SQUARE, "id": 1, "category_id": 3},
        {
            **SQUARE,
            "id": 2,
            "category_id": 17,
            "segmentation": [[6, 5, 16, 5, 16, 12, 6, 12], [20, 15, 25, 15, 25, 18]],
        },
        {**SQUARE, "id": 3, "category_id": 17, "segmentation": runs},
        {**SQUARE, "id": 4, "category_id": 17, "iscrowd": 1, "segmentation": runs},
    ]
    data = CocoDataset(write(tmp_path / "c.json", annotations))
    assert data.class_names == ["ring", "dot"]
    labels = data[0].labels
    assert labels.classes.tolist() == [1, 2, 2]
    assert len(labels.planes) == 2  # two that overlap; the third fits beside them
    for number, annotation in enumerate(annotations[:3]):
        expected = COCO(str(tmp_path / "c.json")).annToMask(annotation).astype(bool)
        assert np.array_equal(labels.mask(number).numpy(), expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [9, 9], "counts": [81]}, r"the segmentation of annotation 8: size \[9, 9\]"),
        ([[2, 3, 12, 3, math.nan, 9]], "the segmentation of annotation 8: the coordinate nan"),
    ],
)
def test_segmentations_that_do_not_fit(tmp_path: Path, segmentation: object, message: str) -> None:
    annotations = [{**SQUARE, "category_id": 3}, {**SQUARE, "category_id": 3, "id": 8, "segmentation": segmentation}]
    data = CocoDataset(write(tmp_path / "c.json", annotations))
    with pytest.raises(InputError, match=r"c\.json: " + message):
        data.labels(0)


def test_cells_are_counted_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = [{**SQUARE, "category_id": category} for category in (3, 17, 3)]
    data = CocoDataset(write(tmp_path / "c.json", annotations), num_classes=3)
    monkeypatch.setattr(CocoDataset, "read_labels", None)
    assert data.class_counts().tolist() == [[2, 1, 0]]
    assert data.class_names == ["ring", "dot", "class3"]
    assert data.category_ids == [3, 17, 18]


def test_annotations_without_a_pixel_are_no_cells(tmp_path: Path) -> None:
    outside = [[-9, -9, -5, -9, -5, -5]]
    annotations = [
        {**SQUARE, "category_id": 17, "segmentation": outside},
        {**SQUARE, "category_id": 17, "segmentation": {"size": [20, 30], "counts": [600]}},
        {**SQUARE, "category_id": 3},
    ]
    labels = CocoDataset(write(tmp_path / "c.json", annotations))[0].labels
    assert labels.classes.tolist() == [1]
    assert labels.areas.tolist() == [60]


def test_skipped_annotations_are_counted_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = [{**SQUARE, "category_id": 3}, {**SQUARE, "category_id": 3, "iscrowd": 1}, SQUARE | {"image_id": 7}]
    path = write(tmp_path / "c.json", annotations)
    assert CocoDataset(path).class_counts().sum() == 1
    reasons = "1 crowds, 1 of pictures that the file does not name"
    assert capsys.readouterr().err == f"warning: {path}: 2 of 3 annotations skipped: {reasons}\n"


@pytest.mark.parametrize("size", [{"height": None, "width": None}, {}])
def test_sizes_that_the_file_leaves_out_are_the_pictures(tmp_path: Path, size: dict) -> None:
    images = [{"id": 5, "file_name": "a.png", **size}]
    sample = CocoDataset(write(tmp_path / "c.json", [{**SQUARE, "category_id": 3}], images=images))[0]
    assert sample.labels.areas.tolist() == [60]


def test_the_converted_folder_is_trained_on(tiny_dataset: Path, tmp_path: Path) -> None:
    """With the file inside the folder that it describes."""
    data = shutil.copytree(tiny_dataset, tmp_path / "set")
    convert(ConvertConfig(data, ("coco",), data=data))
    options = TrainConfig(data_options=DataOptions(data=(data / "annotations.json",)))
    built = build_datasets(options, tmp_path)
    folder = Hw3Folder(data)
    assert sorted(built.train.names + built.val.names) == [f"train/{name}/image.tif" for name in folder.names]
    assert len(built.val[0].labels) == built.val.class_counts()[0].sum()


def test_random_changes_of_a_file_are_read_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No other exception than InputError, and no crash in C code."""
    path = tmp_path / "c.json"
    text = coco_mask.encode(np.asfortranarray(np.eye(20, 30, dtype=np.uint8)))["counts"].decode()
    annotations = [
        {**SQUARE, "id": 1, "category_id": 3},
        {**SQUARE, "id": 2, "category_id": 17, "segmentation": {"size": [20, 30], "counts": [21, 4, 575]}},
        {**SQUARE, "id": 3, "category_id": 17, "segmentation": {"size": [20, 30], "counts": text}},
    ]
    contents = json.loads(write(path, annotations).read_text())
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(400):
        path.write_text(json.dumps(mutated(contents, rng)))
        with contextlib.suppress(InputError):
            read += to_coco(JoinedDataset([CocoDataset(path)]))["images"] is not None
    assert 40 < read < 360


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    image = {"id": 5, "file_name": "a.png", "height": 21, "width": 30}
    path = write(tmp_path / "c.json", [], images=[image])
    with pytest.raises(InputError, match=r"a\.png: 20x30 pixels, but c\.json says 21x30"):
        CocoDataset(path)[0]


def test_ids_of_the_folder_are_kept(tiny_dataset: Path) -> None:
    part = Hw3Folder(tiny_dataset).subset([4, 1])
    assert [image["id"] for image in to_coco(part)["images"]] == [5, 2]


def test_pictures_inside_a_file_have_annotations_of_their_own(tmp_path: Path) -> None:
    """Named as prediction names them, after a ``#``: here the times of an OME-TIFF."""
    stack = np.random.default_rng(0).integers(0, 255, (2, 20, 30), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "TYX"}, photometric="minisblack")
    square = {"segmentation": [[2, 3, 8, 3, 8, 9, 2, 9]], "category_id": 1, "iscrowd": 0}
    contents = {
        "images": [{"id": t, "file_name": f"a.ome.tif#t{t}", "height": 20, "width": 30} for t in range(2)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [{"id": 1, "image_id": 1, **square}],
    }
    (tmp_path / "a.json").write_text(json.dumps(contents))
    dataset = CocoDataset(tmp_path / "a.json", percentiles=None)
    for t in range(2):
        assert np.array_equal(dataset[t].image[:, :, 0].numpy(), stack[t])
        assert len(dataset[t].labels) == t
    (tmp_path / "b.json").write_text(json.dumps(contents).replace("a.ome.tif#t1", "a.ome.tif#t7"))
    with pytest.raises(InputError, match=r"a\.ome\.tif: no picture t7; it has t0, t1"):
        CocoDataset(tmp_path / "b.json")[1]
