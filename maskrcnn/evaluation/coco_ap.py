"""Average precision as COCO defines it (Lin et al. 2014), by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn.evaluation.coco_match import DenseCOCOeval

COCO_MAX_DETECTIONS = 100
"""COCO's limit of detections per image. Pictures of cells often have more cells: a perfect detector and one that stops
at 100 have the same score then."""

MAX_DETECTIONS = 1000
"""Second limit of detections per image, more than most pictures have cells."""


def coco_metrics(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    detections_per_image: int = MAX_DETECTIONS,
    iou_type: str = "segm",
) -> dict[str, float]:
    """COCO average precision (Lin et al. 2014; IoU 0.5:0.95) overall and per class, as pycocotools computes it.

    Args:
        truth: COCO ground truth, as :func:`maskrcnn.data.coco.to_coco` makes it.
        results: COCO results; the score of ``[]`` is 0.
        detections_per_image: AP is given at COCO's 100 detections per image (``AP``, ``AP50``, ``AP75``,
            ``AP50/class1``, ...) and at this limit (``AP@1000``, ``AP50@1000/class1``, ...).
        iou_type: ``segm`` or ``bbox``.

    Returns:
        Values in 0..1; -1 for a class without a cell in ``truth``, as in pycocotools.
    """
    return average_precision(*precision_of(truth, results, detections_per_image, iou_type))


def precision_of(
    truth: dict[str, Any], results: list[dict[str, Any]], detections_per_image: int, iou_type: str
) -> tuple[np.ndarray, COCOeval]:
    """Precision [IoU, recall, class, area, limit] of :func:`coco_metrics`, and the evaluation with its parameters."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        # loadRes modifies its argument, and does not accept an empty list
        detections = ground_truth.loadRes([dict(r) for r in results]) if results else COCO()
        evaluation = DenseCOCOeval(ground_truth, detections, iou_type)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = sorted({COCO_MAX_DETECTIONS, detections_per_image})
        if not results:
            return _precision_without_results(evaluation), evaluation
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation


def _precision_without_results(evaluation: COCOeval) -> np.ndarray:
    """pycocotools' precision [IoU, recall, class, area, limit] without detections: 0 for classes that have cells."""
    params = evaluation.params
    shape = (len(params.iouThrs), len(params.recThrs), len(params.catIds), len(params.areaRng), len(params.maxDets))
    precision = -np.ones(shape)
    for index, category in enumerate(params.catIds):
        if evaluation.cocoGt.getAnnIds(catIds=[category]):
            precision[:, :, index] = 0
    return precision


def average_precision(precision: np.ndarray, evaluation: COCOeval) -> dict[str, float]:
    """The scores of :func:`coco_metrics` from the result of :func:`precision_of`."""
    params = evaluation.params
    thresholds = np.round(params.iouThrs, 2).tolist()
    of_threshold = {"AP": slice(None), "AP50": thresholds.index(0.5), "AP75": thresholds.index(0.75)}

    metrics: dict[str, float] = {}
    for index, limit in enumerate(params.maxDets):
        suffix = "" if limit == COCO_MAX_DETECTIONS else f"@{limit}"
        at_limit = precision[:, :, :, 0, index]  # area range 0 is "all"
        for name, threshold in of_threshold.items():
            metrics[name + suffix] = mean_of_known(at_limit[threshold])
            for position, category in enumerate(params.catIds):
                metrics[f"{name}{suffix}/class{category}"] = mean_of_known(at_limit[threshold][..., position])
    return metrics


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values other than -1, which stands for classes without cells; -1 if there are none."""
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0
