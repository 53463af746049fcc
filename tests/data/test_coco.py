"""COCO files: what is written pycocotools reads, and what COCO files hold is read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.data.coco import CocoDataset, to_coco
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.errors import InputError


@pytest.fixture(scope="module")
def converted(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coco") / "annotations.json"
    subprocess.run([sys.executable, "-m", "maskrcnn.data.coco", str(tiny_dataset), "-o", str(path)], check=True)
    return path


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
    read = CocoDataset(converted, tiny_dataset / "train")
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
    ("annotation", "changes", "message"),
    [
        ({**SQUARE, "category_id": 9}, {}, "annotation 8 has the unknown category 9"),
        ({**SQUARE, "category_id": 3, "image_id": 77}, {}, "not a COCO annotation file"),
        ({**SQUARE, "category_id": 3, "segmentation": None}, {}, "the segmentation of annotation 8"),
        (
            {**SQUARE, "category_id": 3, "segmentation": {"size": [9, 9], "counts": [81]}},
            {},
            r"the segmentation of annotation 8: size \[9, 9\]",
        ),
        ({**SQUARE, "category_id": 3}, {"images": []}, "not a COCO annotation file|names no picture"),
        ({**SQUARE, "category_id": 3}, {"categories": None}, "not a COCO annotation file"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, annotation: dict, changes: dict, message: str) -> None:
    path = write(tmp_path / "c.json", [{"id": 8, **annotation}], **changes)
    with pytest.raises(InputError, match=message):
        CocoDataset(path).class_counts()


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    image = {"id": 5, "file_name": "a.png", "height": 21, "width": 30}
    path = write(tmp_path / "c.json", [], images=[image])
    with pytest.raises(InputError, match=r"a\.png: 20x30 pixels, but c\.json says 21x30"):
        CocoDataset(path)[0]


def test_ids_of_the_folder_are_kept(tiny_dataset: Path) -> None:
    part = Hw3Folder(tiny_dataset).subset([4, 1])
    assert [image["id"] for image in to_coco(part)["images"]] == [5, 2]
