"""COCO results as files: pycocotools reads them, and their categories are those of the training data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import maskrcnn
from maskrcnn.checkpoint import load_checkpoint, pack_checkpoint, save_checkpoint
from maskrcnn.data.coco import to_coco
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.id_mapping import TestImage
from maskrcnn.engine.config import DataOptions, TrainConfig
from maskrcnn.engine.datasets import build_datasets
from maskrcnn.engine.evaluate import EvaluateConfig, evaluate_checkpoint
from maskrcnn.errors import InputError
from maskrcnn.export.coco import check_results, write_results
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.structures import Detections

IMAGE = TestImage(Path("a.tif"), "a.tif", 7, 48, 64)
CLASSES = range(1, 5)


def results() -> list[dict]:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 24.0], [10.0, 8.0, 40.0, 30.0]])
    cells = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 3]), torch.ones(2, 28, 28), (48, 64))
    return cells.to_coco(7)


def test_results_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    write_results(tmp_path, results(), [IMAGE], CLASSES)
    with pytest.raises(RuntimeError, match="does not fit"):
        check_results([{**results()[0], "category_id": 5}], [IMAGE], CLASSES)
    with pytest.raises(RuntimeError, match="does not fit"):
        check_results(results(), [dataclasses.replace(IMAGE, height=64, width=48)], CLASSES)
    write_results(tmp_path, [], [IMAGE], CLASSES)
    assert json.loads((tmp_path / "test-results.json").read_text()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_results(tmp_path / "file", [], [], [1])


def test_classes_become_the_categories_of_the_data(tmp_path: Path) -> None:
    given = results()
    path, _ = write_results(tmp_path, given, [IMAGE], [0, 5, 6, 90])
    assert [result["category_id"] for result in json.loads(path.read_text())] == [0, 6]
    assert [result["category_id"] for result in given] == [1, 3]  # a report goes on with these


def test_category_ids_go_from_the_data_to_the_results(tiny_run: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """From a COCO file to the training data, and from the checkpoint, in both forms, to results and scores."""
    ids, names = [0, 5, 6, 90], ["a", "b", "c", "d"]
    truth = to_coco(Hw3Folder(tiny_dataset))
    for entry in truth["annotations"]:
        entry["category_id"] = ids[entry["category_id"] - 1]
    truth["categories"] = [{"id": number, "name": name} for number, name in zip(ids[::-1], names[::-1], strict=True)]
    (tmp_path / "c.json").write_text(json.dumps(truth))
    data = DataOptions(data=(tmp_path / "c.json",), image_root=tiny_dataset / "train")
    built = build_datasets(TrainConfig(data_options=data), tmp_path)
    assert (built.category_ids, built.class_names) == (ids, names)

    described = {"category_ids": built.category_ids, "class_names": built.class_names}
    checkpoint = load_checkpoint(tiny_run / "best.pt")
    assert checkpoint["category_ids"] == [1, 2, 3, 4]  # what the run's data has
    save_checkpoint(tmp_path / "best.pt", checkpoint | described)
    pack_checkpoint(checkpoint | described, tmp_path / "best.safetensors")
    assert maskrcnn.load(tmp_path / "best.safetensors", device="cpu").category_ids == tuple(ids)
    options = InferConfig(tmp_path / "best.pt", data=tiny_dataset, out=tmp_path / "out", format=("coco",), device="cpu")
    outcome = infer(options)
    found = json.loads((outcome.folder / "test-results.json").read_text())
    records = [json.loads(path.read_text()) for path in (outcome.folder / "cells").glob("*.json")]
    labels = [cell["category_id"] for record in records for cell in record["results"]]
    assert labels
    assert sorted(ids[label - 1] for label in labels) == sorted(result["category_id"] for result in found)
    named = EvaluateConfig(tmp_path / "best.pt", coco=tmp_path / "c.json", image_root=tiny_dataset / "train")
    assert "mask/AP50@1000/class4" in evaluate_checkpoint(dataclasses.replace(named, device="cpu"))


def test_category_ids_are_as_many_as_classes(tiny_run: Path, tmp_path: Path) -> None:
    """Seen before anything is predicted, not when the results are written."""
    save_checkpoint(tmp_path / "best.pt", load_checkpoint(tiny_run / "best.pt") | {"category_ids": [7]})
    with pytest.raises(InputError, match="category_ids has 1 entries; expected 4"):
        maskrcnn.load(tmp_path / "best.pt", device="cpu")
