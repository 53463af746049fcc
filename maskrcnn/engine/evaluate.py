"""Validation: the network's detections on whole pictures, scored by pycocotools."""

from __future__ import annotations

import contextlib
import io
import itertools
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from maskrcnn.data.coco import to_coco
from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.sample import Batch, collate
from maskrcnn.engine import distributed
from maskrcnn.model import MaskRCNN

COCO_MAX_DETECTIONS = 100
"""Detections an image that COCO counts; pictures of cells often hold more, so the model's limit is scored as well."""


@torch.inference_mode()
def predict_dataset(model: MaskRCNN, dataset: CellDataset, device: torch.device) -> list[dict[str, Any]]:
    """COCO results (RLE as text, 1-based classes) of the model on every picture, each at its own size.

    Of several processes each predicts every N-th picture; process 0 returns the results of all, in the order of the
    pictures, the others none.
    """
    model.eval()
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    loader: DataLoader[Batch] = DataLoader(Subset(dataset, own), batch_size=1, collate_fn=collate)  # type: ignore[arg-type] # samples in, batches out
    results: list[list[dict[str, Any]]] = []
    for batch in tqdm(loader, desc="validate", leave=False, disable=not distributed.is_main()):
        batch = batch.to(device)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        for image_id, detections in zip(batch.image_ids, model(images, batch.sizes), strict=True):
            results.append(detections.to_coco(image_id))
    in_order = itertools.zip_longest(*distributed.gather(results), fillvalue=[])
    return [result for pictures in in_order for picture in pictures for result in picture]


def coco_metrics(
    truth: dict[str, Any], results: list[dict[str, Any]], detections_per_image: int, iou_type: str = "segm"
) -> dict[str, float]:
    """COCO average precision (Lin et al. 2014; IoU 0.5:0.95) overall and per class, as pycocotools computes it.

    Args:
        truth: COCO ground truth, as :func:`maskrcnn.data.coco.to_coco` makes it.
        results: COCO results; ``[]`` scores 0.
        detections_per_image: the model's own limit. AP is given at COCO's 100 detections an image (``AP``, ``AP50``,
            ``AP75``, ``AP50/class1``, ...) and at this limit (for 200: ``AP@200``, ``AP50@200/class1``, ...).
        iou_type: ``segm`` or ``bbox``.

    Returns:
        Values in 0..1; -1 for a class without a cell in ``truth``, as pycocotools says it.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        # loadRes changes what it is given, and refuses an empty list
        detections = ground_truth.loadRes([dict(r) for r in results]) if results else COCO()
        evaluation = COCOeval(ground_truth, detections, iou_type)
        limits = sorted({COCO_MAX_DETECTIONS, detections_per_image})
        evaluation.params.maxDets = limits
        if not results:
            return _metrics(_precision_without_results(evaluation), evaluation)
        evaluation.evaluate()
        evaluation.accumulate()
    return _metrics(evaluation.eval["precision"], evaluation)


def evaluate(
    model: MaskRCNN, dataset: CellDataset, device: torch.device, truth: dict[str, Any] | None = None
) -> dict[str, float]:
    """Mask and box metrics of ``model`` on ``dataset``: keys ``mask/AP``, ``mask/AP50/class1``, ``box/AP``, ...

    Several processes share the pictures and get the same metrics, which process 0 computes: it alone needs ``truth``.
    """
    results = predict_dataset(model, dataset, device)

    def score() -> dict[str, float]:
        cells = truth if truth is not None else to_coco(dataset)
        metrics = {}
        for name, iou_type in (("mask", "segm"), ("box", "bbox")):
            scores = coco_metrics(cells, results, model.detections_per_image, iou_type)
            metrics.update({f"{name}/{key}": value for key, value in scores.items()})
        return metrics

    return distributed.from_main(score)


def _precision_without_results(evaluation: COCOeval) -> np.ndarray:
    """pycocotools' precision [IoU, recall, class, area, limit] for no detection at all: 0 where there are cells."""
    params = evaluation.params
    shape = (len(params.iouThrs), len(params.recThrs), len(params.catIds), len(params.areaRng), len(params.maxDets))
    precision = -np.ones(shape)
    for index, category in enumerate(params.catIds):
        if evaluation.cocoGt.getAnnIds(catIds=[category]):
            precision[:, :, index] = 0
    return precision


def _metrics(precision: np.ndarray, evaluation: COCOeval) -> dict[str, float]:
    params = evaluation.params
    thresholds = np.round(params.iouThrs, 2).tolist()
    of_threshold = {"AP": slice(None), "AP50": thresholds.index(0.5), "AP75": thresholds.index(0.75)}

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else -1.0

    metrics: dict[str, float] = {}
    for index, limit in enumerate(params.maxDets):
        suffix = "" if limit == COCO_MAX_DETECTIONS else f"@{limit}"
        at_limit = precision[:, :, :, 0, index]  # area range 0 is "all"
        for name, threshold in of_threshold.items():
            metrics[name + suffix] = mean(at_limit[threshold])
            for position, category in enumerate(params.catIds):
                metrics[f"{name}{suffix}/class{category}"] = mean(at_limit[threshold][..., position])
    return metrics
