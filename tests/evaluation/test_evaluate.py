"""Metrics of COCO results, against pycocotools, dense masks and hand-computed cases."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from maskrcnn.data.coco import to_coco
from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.stored import StoredPicture
from maskrcnn.evaluation.coco_ap import coco_metrics
from maskrcnn.evaluation.dense import PER_PICTURE, POOLED, count, dense_metrics, summarize
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.evaluation.thresholds import fit_thresholds
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections, InstanceLabels
from tests.stand_in import StandIn

SIZE = 96


def _square(y: int, x: int, side: int) -> dict[str, Any]:
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[y : y + side, x : x + side] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _annotation(number: int, image: int, category: int, rle: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": rle,
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": 0,
    }


def _truth(annotations: list[dict[str, Any]], images: int = 1, categories: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": i + 1, "height": SIZE, "width": SIZE, "file_name": f"{i}.tif"} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class{c + 1}"} for c in range(categories)],
        "annotations": annotations,
    }


def _result(annotation: dict[str, Any], score: float, rle: dict[str, Any] | None = None) -> dict[str, Any]:
    rle = rle or annotation["segmentation"]
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "segmentation": rle,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "score": score,
    }


def _random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, 5):
        for _ in range(30):
            y, x = rng.integers(0, SIZE - 16, 2)
            side, category = int(rng.integers(6, 16)), int(rng.integers(1, 4))
            annotation = _annotation(len(annotations) + 1, image, category, _square(y, x, side))
            annotations.append(annotation)
            dy, dx, grow = rng.integers(-3, 4, 3)
            moved = _square(max(0, y + dy), max(0, x + dx), max(2, side + grow))
            results.append(_result(annotation, float(rng.random()), moved))
    return _truth(annotations, images=4, categories=3), results


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_summary_of_pycocotools(seed: int, iou_type: str) -> None:
    truth, results = _random_case(seed)
    metrics = coco_metrics(truth, results, detections_per_image=200, iou_type=iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes([dict(r) for r in results]), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    for name, expected in zip(("AP", "AP50", "AP75"), evaluation.stats[:3], strict=True):
        assert metrics[name] == pytest.approx(expected, abs=1e-12)
    assert 0 < metrics["AP"] < metrics["AP50"] < 1
    assert np.mean([metrics[f"AP50/class{c}"] for c in (1, 2, 3)]) == pytest.approx(metrics["AP50"], abs=1e-12)


def test_perfect_results_score_one_and_none_scores_zero() -> None:
    truth, _ = _random_case(0)
    perfect = [_result(annotation, 0.9) for annotation in truth["annotations"]]
    assert coco_metrics(truth, perfect, 200)["AP"] == pytest.approx(1)
    nothing = coco_metrics(truth, [], 200)
    assert nothing["AP"] == nothing["AP50@200"] == nothing["AP/class3"] == 0


def test_a_class_without_cells_is_left_out_of_the_mean() -> None:
    annotation = _annotation(1, 1, 1, _square(10, 10, 12))
    truth = _truth([annotation], categories=2)
    metrics = coco_metrics(truth, [_result(annotation, 0.5)], 200)
    assert metrics["AP50"] == pytest.approx(1)
    assert metrics["AP50/class2"] == -1
    assert coco_metrics(truth, [], 200)["AP50/class2"] == -1


def test_more_cells_than_coco_counts_show_at_the_models_limit() -> None:
    annotations = [_annotation(i + 1, 1, 1, _square(6 * (i // 15), 6 * (i % 15), 5)) for i in range(150)]
    results = [_result(annotation, 1 - i / 1000) for i, annotation in enumerate(annotations)]
    metrics = coco_metrics(_truth(annotations), results, detections_per_image=200)
    assert metrics["AP50@200"] == pytest.approx(1)
    # 100 of 150 cells found without a mistake: recall levels 0, 0.01, ..., 0.66 of 101 are reached
    assert metrics["AP50"] == pytest.approx(67 / 101)


def test_the_callers_results_are_left_as_they_are() -> None:
    truth, results = _random_case(1)
    before = [dict(result) for result in results]
    coco_metrics(truth, results, 200)
    assert results == before


def _drawn(results: list[dict[str, Any]], image: int, category: int | None) -> np.ndarray:
    """The results of one picture as a label image, painted mask by mask, the best last."""
    labels = np.zeros((SIZE, SIZE), int)
    chosen = [r for r in results if r["image_id"] == image and category in (None, r["category_id"])]
    for value, result in enumerate(sorted(chosen, key=lambda r: r.get("score", 0)), start=1):
        labels[coco_mask.decode(result["segmentation"]) > 0] = value
    return labels


@pytest.mark.parametrize("score_threshold", [0.0, 0.5])
def test_dense_metrics_of_overlapping_results(score_threshold: float) -> None:
    """Against label images painted from full masks. True cells that overlap get a plane each."""
    truth, results = _random_case(2)
    metrics = dense_metrics(truth, results, score_threshold)
    kept = [result for result in results if result["score"] >= score_threshold]
    for name, category in (("any", None), ("class1", 1), ("class2", 2), ("class3", 3)):
        pictures = []
        for image in range(1, 5):
            cells = [a for a in truth["annotations"] if a["image_id"] == image and category in (None, a["category_id"])]
            planes = np.array([i * coco_mask.decode(a["segmentation"]).astype(int) for i, a in enumerate(cells, 1)])
            pictures.append(count(planes, _drawn(kept, image, category)))
        for key, value in summarize(pictures).items():
            assert metrics[f"{key}/{name}"] == pytest.approx(value, abs=1e-12)
    assert 0.1 < metrics["AP50"] < 0.9
    for key in (*POOLED, *PER_PICTURE):
        assert metrics[key] == pytest.approx(np.mean([metrics[f"{key}/class{k}"] for k in (1, 2, 3)]))


def test_dense_metrics_scored_by_hand() -> None:
    """A cell and, half over it with a lower score, a wrong one; the wrong one alone with a higher score."""
    cell = _annotation(1, 1, 1, _square(10, 10, 10))
    wrong = _square(10, 15, 10)
    truth = _truth([cell], categories=2)
    behind = dense_metrics(truth, [_result(cell, 0.9), _result(cell, 0.6, wrong)])
    assert behind["SQ/class1"] == 1
    assert behind["AP50"] == behind["AP50/class1"] == 1 / 2
    assert behind["PQ"] == pytest.approx(1 / 1.5)
    in_front = dense_metrics(truth, [_result(cell, 0.9), _result(cell, 0.95, wrong)])
    assert in_front["AP50/class1"] == 1 / 2  # half of the cell is left to see, IoU 0.5: a hit for AP...
    assert in_front["PQ"] == 0  # ... and none for PQ
    assert dense_metrics(truth, [_result(cell, 0.4)])["AP50"] == 0
    assert dense_metrics(truth, [_result(cell, 0.4)], score_threshold=0.4)["AP50"] == 1
    assert dense_metrics(truth, [])["AP50/class2"] == -1


def test_a_cell_of_the_wrong_class_is_right_for_any() -> None:
    cells = [_annotation(1, 1, 1, _square(10, 10, 10)), _annotation(2, 1, 2, _square(40, 40, 10))]
    swapped = [{**_result(cell, 0.9), "category_id": 3 - cell["category_id"]} for cell in cells]
    metrics = dense_metrics(_truth(cells, categories=2), swapped)
    assert metrics["AP50/any"] == 1
    assert metrics["AP50"] == 0


def test_dense_scores_by_class_have_thresholds_of_their_own() -> None:
    annotations = [_annotation(1, 1, 1, _square(0, 0, 10)), _annotation(2, 1, 2, _square(20, 0, 10))]
    truth = _truth(annotations, categories=2)
    results = [_result(annotations[0], 0.4), _result(annotations[1], 0.4)]
    assert dense_metrics(truth, results, 0.5)["AP"] == 0
    scores = dense_metrics(truth, results, (0.3, 0.5))
    assert (scores["AP/class1"], scores["AP/class2"]) == (1, 0)
    assert scores["AP90/any"] == 0.5


class Shown(CellDataset):
    """Pictures that are their own label images, as :class:`Copier` expects them."""

    def __init__(self, planes: list[np.ndarray], sources: list[str]) -> None:
        super().__init__()
        self.planes, self.sources = planes, sources
        self.names = [f"picture{index}" for index in range(len(planes))]
        self.image_ids = list(range(1, len(planes) + 1))
        self.num_classes = 1

    def read_image(self, index: int) -> Tensor:
        return torch.from_numpy(self.planes[index].astype(np.uint8))[:, :, None].repeat(1, 1, 3)

    def open_image(self, index: int) -> StoredPicture:
        pixels = self.planes[index].astype(np.uint8)
        return StoredPicture(
            lambda top, left, h, w: pixels[top : top + h, left : left + w], pixels.shape, Path("a"), "a"
        )

    def read_labels(self, index: int) -> InstanceLabels:
        return InstanceLabels.from_planes(torch.from_numpy(self.planes[index].astype(np.int32))[None], [1])


class Copier(StandIn):
    """Stands in for a network that is right: cell i has the grey value i, and the score that ``score`` gives it."""

    def __init__(self, score: Callable[[int], float] = lambda cell: 0.9, swell: float = 0.0) -> None:
        super().__init__()
        self.score, self.swell = score, swell

    def detect(self, image: Tensor) -> Detections:
        grey = image[0].numpy()
        cells = InstanceLabels.from_planes(torch.from_numpy(grey.astype(np.int32))[None], [1])
        scores = torch.tensor([self.score(int(cell)) for cell in cells.ids])
        order = scores.argsort(descending=True)
        y, x = torch.meshgrid(torch.arange(56), torch.arange(56), indexing="ij")
        # probabilities that fall outwards, so that the mask threshold says how large a cell is
        far = torch.maximum((y - 27.5).abs(), (x - 27.5).abs()) / 28
        mask = 1 - far / 2 if self.swell else torch.ones(56, 56)
        boxes = cells.boxes + self.swell * torch.tensor([-1.0, -1, 1, 1]) * (
            (cells.boxes[:, 2:] - cells.boxes[:, :2]) / 2
        ).repeat(1, 2)
        labels = torch.ones(len(cells)).long()
        return Detections(boxes[order], scores[order], labels, mask.repeat(len(cells), 1, 1), grey.shape)  # type: ignore[arg-type]


def _predictor(model: nn.Module, **options: Any) -> Predictor:
    return Predictor(model, None, ["cell"], torch.device("cpu"), "fp32", **options)  # type: ignore[arg-type]


def _squares(count: int, side: int = 12) -> np.ndarray:
    plane = np.zeros((SIZE, SIZE), int)
    for cell in range(count):
        y, x = 3 + 16 * (cell // 5), 3 + 18 * (cell % 5)
        plane[y : y + side, x : x + side] = cell + 1
    return plane


def test_a_perfect_predictor_scores_one() -> None:
    dataset = Shown([_squares(7), _squares(20), _squares(0)], ["a", "b", "b"])
    scores = evaluate(_predictor(Copier()), dataset)
    for key in ("mask/AP", "mask/AP50", "mask/AP@1000", "box/AP", "dense/AP", "dense/AP90", "dense/PQ", "mask/AP/a"):
        assert scores[key] == pytest.approx(1), key


def test_scores_of_each_source() -> None:
    """The second picture's cells are not found."""
    dataset = Shown([_squares(10), _squares(10) * 20], ["a", "b"])
    scores = evaluate(_predictor(Copier(lambda cell: 0.9 if cell <= 10 else 0.1)), dataset)
    assert (scores["dense/AP50"], scores["dense/AP50/a"], scores["dense/AP50/b"]) == (0.5, 1, 0)
    assert "mask/AP/a" in scores
    assert not [key for key in evaluate(_predictor(Copier()), Shown([_squares(3)], ["a"])) if key.endswith("/a")]


def test_the_limit_of_detections_is_a_thousand() -> None:
    """A picture of 150 cells: at COCO's 100 detections even a perfect predictor cannot score 1."""
    plane = np.zeros((256, 256), int)
    for cell in range(150):
        y, x = 2 + 16 * (cell // 15), 2 + 16 * (cell % 15)
        plane[y : y + 8, x : x + 8] = cell + 1
    scores = evaluate(_predictor(Copier()), Shown([plane], ["a"]))
    assert scores["mask/AP50@1000"] == pytest.approx(1)
    assert scores["mask/AP50"] < 0.7


def test_scores_and_masks_are_fitted() -> None:
    """True cells score 0.3 and more, debris 0.25; masks that fall to 0.6 where a cell ends are right from there on."""
    planes = [_squares(10), _squares(12)]
    dataset = Shown(planes, ["a", "a"])
    truth = to_coco(dataset)
    debris = {5, 7, 11}
    truth["annotations"] = [
        cell
        for cell in truth["annotations"]
        if int(planes[cell["image_id"] - 1][int(cell["bbox"][1]), int(cell["bbox"][0])]) not in debris
    ]
    model = Copier(lambda cell: 0.25 if cell in debris else 0.3 + cell / 50, swell=0.25)
    chosen = fit_thresholds(_predictor(model), dataset, truth)
    assert chosen.score_threshold == (0.3,)
    assert chosen.mask_threshold == 0.6
    assert chosen.nms_threshold == 0.5
    assert chosen.tried["mask_threshold=0.6"] > chosen.tried["mask_threshold=0.5"]
    fitted = _predictor(model, score_threshold=chosen.score_threshold, mask_threshold=chosen.mask_threshold)
    assert (
        evaluate(fitted, dataset, truth=truth)["dense/AP"]
        > evaluate(_predictor(model), dataset, truth=truth)["dense/AP"]
    )


def test_thresholds_stay_where_nothing_is_gained() -> None:
    dataset = Shown([_squares(10)], ["a"])
    chosen = fit_thresholds(_predictor(Copier()), dataset, to_coco(dataset))
    assert (chosen.score_threshold, chosen.mask_threshold, chosen.nms_threshold) == ((0.5,), 0.5, 0.5)
