"""Matching in dense pictures, compared with pycocotools."""

from __future__ import annotations

import contextlib
import io
import time
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.coco_match import DenseCOCOeval


def _cell(top: int, left: int, side: int, size: int) -> dict[str, Any]:
    mask = np.zeros((size, size), np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    rle = coco_mask.encode(mask)
    area, box = float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()
    return {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}, "area": area, "bbox": box}


def _crowded(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Squares that overlap each other, of equal scores, some crowds; pictures without a cell or without a result."""
    rng = np.random.default_rng(seed)
    truth, results = [], []
    for image in range(1, 6):
        for _ in range(0 if image == 4 else 40):
            top, left, side, category = (
                int(v) for v in (*rng.integers(0, 90, 2), rng.integers(4, 40), rng.integers(1, 4))
            )
            known = {"image_id": image, "category_id": category}
            crowd = int(rng.random() < 0.1)
            truth.append({**_cell(top, left, side, 128), **known, "id": len(truth) + 1, "iscrowd": crowd})
            for _ in range(0 if image == 5 else rng.integers(0, 4)):
                down, right, larger = (int(v) for v in rng.integers(-2, 3, 3))
                moved = _cell(max(0, top + down), max(0, left + right), max(2, side + larger), 128)
                results.append({**moved, **known, "score": float(rng.choice([0.3, 0.5, 0.7, 0.9]))})
    results.append({**_cell(3, 4, 20, 128), "image_id": 4, "category_id": 1, "score": 0.8})
    images = [{"id": image, "height": 128, "width": 128} for image in range(1, 6)]
    return {"images": images, "annotations": truth, "categories": [{"id": k} for k in (1, 2, 3)]}, results


def _evaluated(
    kind: type[COCOeval], scene: dict[str, Any], results: list[dict[str, Any]], iou_type: str, limits: list[int]
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = scene
        truth.createIndex()
        evaluation = kind(truth, truth.loadRes([dict(result) for result in results]), iou_type)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_are_those_of_pycocotools(seed: int, iou_type: str) -> None:
    """At every IoU, class, range of areas and limit of detections."""
    scene, results = _crowded(seed)
    found = [_evaluated(kind, scene, results, iou_type, [1, 10, 100]).eval for kind in (COCOeval, DenseCOCOeval)]
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
    assert 0 < found[1]["precision"][:, :, :, 0, 2].mean() < 1


def test_the_time_is_that_of_the_overlapping_pairs() -> None:
    """pycocotools compares each of 250 detections with each of 250 cells, 10 times: it takes 25 times as long."""
    columns, size = 25, 320
    rows = [{**_cell(12 * (i // columns), 12 * (i % columns), 10, size), "category_id": 1} for i in range(250)]
    scene = {
        "images": [{"id": 1, "height": size, "width": size}],
        "annotations": [{**row, "id": i, "image_id": 1, "iscrowd": 0} for i, row in enumerate(rows, start=1)],
        "categories": [{"id": 1}],
    }
    results = [{**row, "image_id": 1, "score": 1 - i / 9999} for i, row in enumerate(rows)]

    def seconds(kind: type[COCOeval]) -> float:
        evaluation = _evaluated(kind, scene, results, "segm", [250])
        start = time.process_time()
        evaluation.evaluateImg(1, 1, [0, 1e10], 250)
        return time.process_time() - start

    assert min(seconds(DenseCOCOeval) for _ in range(3)) < seconds(COCOeval) / 5
