"""Fitting of prediction thresholds on validation pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maskrcnn import distributed
from maskrcnn.data.dataset import CellDataset
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS, coco_metrics, mean_of_known
from maskrcnn.evaluation.dense import precision_by_threshold
from maskrcnn.evaluation.evaluate import predict_dataset, to_results
from maskrcnn.predict.overlaps import lower_overlapping
from maskrcnn.predict.predictor import Diameter, Predictor
from maskrcnn.structures import Detections

SCORES = tuple(round(0.2 + 0.05 * step, 2) for step in range(15))
NMS_THRESHOLDS = (0.4, 0.5, 0.6)
MASK_THRESHOLDS = (0.4, 0.45, 0.5, 0.55, 0.6)
OVERLAP_FACTORS = (0.5, 1.0)
DEFAULT = 0.5
MIN_GAIN = 0.002
"""Minimum gain in score for a value other than the default: less is likely to be chance."""


@dataclass(frozen=True)
class Thresholds:
    """Fitted thresholds.

    Attributes:
        score_threshold: minimum score of a cell, for each class.
        mask_threshold: probability above which a pixel belongs to a cell.
        nms_threshold: IoU of boxes above which the lower-scored cell of a class is dropped.
        overlap_factor: factor of the scores of cells whose masks overlap better ones.
        tried: the score of every value that was tried, for the log: ``mask_threshold=0.45`` -> AP.
    """

    score_threshold: tuple[float, ...]
    mask_threshold: float
    nms_threshold: float
    overlap_factor: float
    tried: dict[str, float]


def fit_thresholds(predictor: Predictor, dataset: CellDataset, truth: dict[str, Any]) -> Thresholds:
    """Choose the thresholds with the best scores of ``predictor`` on a data set, one after the other.

    The NMS and mask thresholds are chosen by AP (COCO, at 1,000 detections per image, which does not depend on a score
    threshold), the overlap factor and the score threshold of each class by the mean of TP / (TP + FP + FN) over IoU 0.5
    to 0.9. The default 0.5 is kept unless another value gains at least :data:`MIN_GAIN`.

    Args:
        predictor: used with its limits, except for the values that are tried.
        dataset: validation pictures.
        truth: :func:`maskrcnn.data.coco.to_coco` of the data set.
    """
    tried: dict[str, float] = {}
    predictor = copy.copy(predictor)
    predictor.overlap_factor = 1.0
    kept, nms = _predict(predictor, dataset, truth, DEFAULT, None, tried)
    diameters: list[Diameter] = distributed.from_main(lambda: [cells.diameter or "none" for cells in kept])
    for value in NMS_THRESHOLDS:
        if value != DEFAULT:
            found, _ = _predict(predictor, dataset, truth, value, diameters, tried)
            if value == _best(tried, "nms_threshold"):
                kept, nms = found, value
    return distributed.from_main(lambda: _choose(dataset, truth, kept, nms, tried))


def _predict(
    predictor: Predictor,
    dataset: CellDataset,
    truth: dict[str, Any],
    nms: float,
    diameters: Sequence[Diameter] | None,
    tried: dict[str, float],
) -> tuple[list[Detections], float]:
    """Detections with the NMS threshold ``nms``, and ``nms``; the score is added to ``tried``."""
    with_nms = predictor.with_limits(replace(predictor.detector.limits, nms_threshold=nms))
    found = predict_dataset(with_nms, dataset, diameters)
    tried[f"nms_threshold={nms}"] = distributed.from_main(lambda: _ap(dataset, truth, found, DEFAULT))
    return found, nms


def _choose(
    dataset: CellDataset, truth: dict[str, Any], found: list[Detections], nms: float, tried: dict[str, float]
) -> Thresholds:
    """The best thresholds for the detections with the NMS threshold ``nms``; scores are added to ``tried``."""
    tried |= {f"mask_threshold={value}": _ap(dataset, truth, found, value) for value in MASK_THRESHOLDS}
    mask = _best(tried, "mask_threshold")
    found = [replace(cells, mask_threshold=mask) for cells in found]
    classes = [category["id"] for category in truth["categories"]]
    by_factor = {}
    for factor in OVERLAP_FACTORS:
        results = to_results(dataset, [lower_overlapping(cells, factor) for cells in found])
        scores = np.array([precision_by_threshold(truth, results, k, SCORES) for k in classes])
        by_factor[factor] = {
            f"score_threshold/class{k}={value}": float(score)
            for k, row in zip(classes, scores, strict=True)
            for value, score in zip(SCORES, row, strict=True)
        }
        tried[f"overlap_factor={factor}"] = mean_of_known(scores.max(axis=1))
    factor = _best(tried, "overlap_factor")
    tried |= by_factor[factor]
    return Thresholds(tuple(_best(tried, f"score_threshold/class{k}") for k in classes), mask, nms, factor, tried)


def _ap(dataset: CellDataset, truth: dict[str, Any], found: Sequence[Detections], mask_threshold: float) -> float:
    results = to_results(dataset, [replace(cells, mask_threshold=mask_threshold) for cells in found])
    return coco_metrics(truth, results)[f"AP@{MAX_DETECTIONS}"]


def _best(tried: dict[str, float], name: str) -> float:
    """The value of the threshold ``name`` with the best score; the default unless the gain is large enough."""
    scores = {float(key.rpartition("=")[2]): score for key, score in tried.items() if key.startswith(f"{name}=")}
    best = max(scores, key=lambda value: scores[value])
    return best if scores[best] >= scores[DEFAULT] + MIN_GAIN else DEFAULT
