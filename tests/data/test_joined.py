"""Joined data sets: names, files, classes, sources and groups of their pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from maskrcnn.data.coco import CocoDataset, to_coco
from maskrcnn.data.dataset import Cache
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.joined import JoinedDataset
from maskrcnn.errors import InputError


def write(root: Path, pictures: dict[str, tuple[int, ...]], grey: int = 90) -> Path:
    """A folder with pictures of 20x30 pixels, each with two cells of each of its classes.

    The cells of class k are moved by k pixels, so that those of different classes overlap.
    """
    for name, classes in pictures.items():
        folder = root / "train" / name
        folder.mkdir(parents=True)
        tifffile.imwrite(folder / "image.tif", np.full((20, 30, 3), grey, np.uint8), photometric="rgb")
        for k in classes:
            plane = np.zeros((20, 30), np.uint16)
            plane[2 + k : 5 + k, 3:9], plane[10:12, 15 + k : 20 + k] = 7, 201
            tifffile.imwrite(folder / f"class{k}.tif", plane)
    return root


@pytest.fixture
def tissue(tmp_path: Path) -> Path:
    return write(tmp_path / "tissue", {"p_01_a": (1,), "p_01_b": (1, 2), "p_02_a": (2,), "same": ()})


@pytest.fixture
def culture(tmp_path: Path) -> Path:
    return write(tmp_path / "culture", {"q_01_a": (1,), "same": (1,)}, grey=30)


def joined(*roots: Path, **options: str) -> JoinedDataset:
    return JoinedDataset([Hw3Folder(root, percentiles=None) for root in roots], **options)


def test_pictures_of_both_parts_under_unique_names(tissue: Path, culture: Path) -> None:
    data = joined(tissue, culture, merge_classes="nucleus")
    assert data.names == ["p_01_a", "p_01_b", "p_02_a", "tissue/same", "q_01_a", "culture/same"]
    assert data.image_ids == [1, 2, 3, 4, 5, 6]
    assert [data.file_name(i) for i in (3, 4)] == ["tissue/same/image.tif", "q_01_a/image.tif"]
    assert [int(data[i].image[0, 0, 0]) for i in range(6)] == [90] * 4 + [30] * 2
    assert [len(data.labels(i)) for i in range(6)] == [2, 4, 2, 0, 2, 2]
    assert torch.equal(data.read_image(5), data[5].image)
    assert data.read_labels(1).classes.tolist() == [1, 1, 1, 1]
    assert data[3].name == "tissue/same"


def test_names_stay_unique_whatever_the_sources_are_called(tmp_path: Path) -> None:
    roots = [write(tmp_path / place / "cells", {"a": (1,), "b": (1,)}) for place in "xy"]
    assert joined(*roots).names == ["1-cells/a", "1-cells/b", "2-cells/a", "2-cells/b"]
    annotations = to_coco(Hw3Folder(write(tmp_path / "z", {"a": (1,)})))
    annotations["images"].append({"id": 9, "file_name": "cells/a", "height": 20, "width": 30})
    (tmp_path / "n.json").write_text(json.dumps(annotations))
    names = JoinedDataset([Hw3Folder(roots[0]), CocoDataset(tmp_path / "n.json"), Hw3Folder(tmp_path / "z")]).names
    assert names == ["cells/a", "b", "a/image.tif", "n/cells/a", "z/a"]


def test_one_part_is_as_it_is_alone(tiny_dataset: Path) -> None:
    alone, data = Hw3Folder(tiny_dataset), JoinedDataset([Hw3Folder(tiny_dataset)])
    assert (data.names, data.image_ids, data.sources) == (alone.names, alone.image_ids, alone.sources)
    assert data.class_names == alone.class_names
    assert np.array_equal(data.class_counts(), alone.class_counts())
    assert np.array_equal(data.kind_counts(), alone.class_counts())
    assert to_coco(data) == to_coco(alone)
    assert torch.equal(data[2].image, alone[2].image)


def test_folders_and_coco_files_mix(tmp_path: Path, tissue: Path) -> None:
    part = Hw3Folder(tissue, percentiles=None).subset([1, 2])
    (tmp_path / "other.json").write_text(json.dumps(to_coco(part)))
    coco = CocoDataset(tmp_path / "other.json", tissue / "train", percentiles=None)
    data = JoinedDataset([Hw3Folder(tissue, percentiles=None), coco])
    assert data.class_names == ["class1", "class2"]
    assert data.names[4:] == ["p_01_b/image.tif", "p_02_a/image.tif"]
    assert data.sources == ["tissue"] * 4 + ["other"] * 2
    assert data.class_counts().tolist() == [[2, 0], [2, 2], [0, 2], [0, 0], [2, 2], [0, 2]]
    assert data[4].labels.to_rle() == data[1].labels.to_rle()


def test_other_classes_are_refused(tissue: Path, culture: Path) -> None:
    message = (
        r"source 2, culture: its classes are class1; expected class1, class2 as in tissue, or --merge-classes NAME"
    )
    with pytest.raises(InputError, match=message):
        joined(tissue, culture)
    parts = [Hw3Folder(root, num_classes=2) for root in (tissue, culture)]
    assert JoinedDataset(parts).class_names == ["class1", "class2"]


def test_merged_classes_keep_cells_that_overlap_apart(tissue: Path) -> None:
    whole, data = Hw3Folder(tissue), joined(tissue, merge_classes="nucleus")
    assert (data.class_names, data.num_classes) == (["nucleus"], 1)
    assert data.class_counts().tolist() == [[2], [4], [2], [0]]
    labels = data[1].labels
    assert labels.classes.tolist() == [1, 1, 1, 1]
    assert labels.plane.tolist() == [0, 0, 1, 1]
    assert labels.to_rle() == whole[1].labels.to_rle()
    assert {category["name"] for category in to_coco(data)["categories"]} == {"nucleus"}
    assert whole[1].labels.classes.tolist() == [1, 1, 2, 2]  # the part is as before


def test_sources_by_folder_name_and_class(tissue: Path, culture: Path) -> None:
    assert Hw3Folder(tissue).sources == Hw3Folder(tissue / "train").sources == ["tissue"] * 4
    assert joined(tissue).sources == ["tissue"] * 4
    kinds = ["tissue/class1", "tissue", "tissue/class2", "tissue"]
    assert joined(tissue, culture, merge_classes="x").sources == [*kinds, "culture", "culture"]
    by_name = joined(tissue, culture, merge_classes="x", source_by="p|q|01")
    assert by_name.sources == ["p/class1", "p", "p/class2", "tissue", "q", "culture"]
    assert by_name.subset([4, 0]).sources == ["q", "p/class1"]
    assert by_name.subset([4, 0]).subset([1]).sources == ["p/class1"]


def test_the_folder_one_is_in_has_a_name(tissue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tissue / "train")
    assert Hw3Folder(".").sources[0] == Hw3Folder("..").sources[0] == "tissue"


def test_kinds_are_sources_by_classes_of_the_files(tissue: Path, culture: Path) -> None:
    """Columns: class 1 and 2 of ``culture``, then of ``tissue``."""
    data = joined(tissue, culture, merge_classes="nucleus")
    expected = [[0, 0, 2, 0], [0, 0, 2, 2], [0, 0, 0, 2], [0, 0, 0, 0], [2, 0, 0, 0], [2, 0, 0, 0]]
    assert data.kind_counts().tolist() == expected
    assert data.subset([4, 1]).kind_counts().tolist() == [expected[4], expected[1]]


def test_groups_are_by_the_start_of_the_name(tissue: Path, culture: Path) -> None:
    data = joined(tissue, culture, merge_classes="nucleus")
    assert data.groups(r"p_\d+").tolist() == [0, 0, 1, 2, 3, 4]
    assert data.groups("p|s").tolist() == [0, 0, 0, 1, 2, 1]  # by the parts' own names
    assert data.groups("_01|x*").tolist() == [0, 1, 2, 3, 4, 5]
    assert data.subset([5, 1, 0]).groups(r"p_\d+").tolist() == [0, 1, 1]


def test_all_parts_share_one_cache(tissue: Path, culture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = joined(tissue, culture, merge_classes="nucleus")
    data.preload()
    assert data.cache.size == 6 * 20 * 30 * 3 + 6 * 20 * 30 * 2  # pixels, and 6 planes of int16

    def refuse(self: Hw3Folder, index: int) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Hw3Folder, "read_image", refuse)
    monkeypatch.setattr(Hw3Folder, "read_labels", refuse)
    part = data.subset([5, 1])
    assert [len(part[i].labels) for i in (0, 1)] == [2, 4]
    assert part[0].image[0, 0, 0] == 30


def test_without_room_in_the_cache(tissue: Path, culture: Path) -> None:
    parts = [Hw3Folder(root) for root in (tissue, culture)]
    data = JoinedDataset(parts, "nucleus", cache=Cache(limit=0))
    assert [len(data[i].labels) for i in range(6)] == [2, 4, 2, 0, 2, 2]
    assert data.cache.full
    assert data.cache.size == 0
