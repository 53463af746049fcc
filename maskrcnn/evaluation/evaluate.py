"""Validation: the network's detections on whole pictures, scored by pycocotools and as label images."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.data.coco import to_coco
from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.rle import label_image, label_planes
from maskrcnn.data.sample import Batch, collate
from maskrcnn.evaluation.plots import plot_classes, plot_precision_recall
from maskrcnn.evaluation.dense import Counts, count, summarize
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
    return _metrics(*_coco_precision(truth, results, detections_per_image, iou_type))


def dense_metrics(truth: dict[str, Any], results: list[dict[str, Any]], min_score: float = 0.5) -> dict[str, float]:
    """AP = TP / (TP + FP + FN) and panoptic quality (:mod:`maskrcnn.evaluation.dense`), which suit dense cells.

    In each picture the results become a label image: those of at least ``min_score``, the higher score in front where
    masks overlap, without one that is hidden altogether. For the scores of a class it holds the results of that class
    alone, as its true cells have a label file of their own.

    Args:
        truth, results: see :func:`coco_metrics`; all segmentations are RLE with text counts.
        min_score: lowest score of a predicted cell. These scores know no ranking: they rate what a user gets who keeps
            such cells.

    Returns:
        For each name that :func:`maskrcnn.evaluation.dense.summarize` explains: ``AP50/class1``, ...; ``AP50/any``, for
        the cells of all classes taken as one, as StarDist and Cellpose have them; and ``AP50``, the arithmetic mean
        over the classes that have cells (MoNuSAC 2020 ranked by a weighted mean; here all classes count alike).
    """
    cells_of, found_of = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        cells_of[annotation["image_id"]].append(annotation)
    for result in results:
        if result["score"] >= min_score:
            found_of[result["image_id"]].append(result)
    classes = [category["id"] for category in truth["categories"]]
    counts: dict[str, list[Counts]] = {name: [] for name in ("any", *(f"class{k}" for k in classes))}
    for image in truth["images"]:
        cells = cells_of[image["id"]]
        found = sorted(found_of[image["id"]], key=lambda result: result["score"])  # label_image shows the last one
        size = image["height"], image["width"]
        counts["any"].append(_count(cells, found, size))
        for k in classes:
            counts[f"class{k}"].append(
                _count(
                    [cell for cell in cells if cell["category_id"] == k],
                    [result for result in found if result["category_id"] == k],
                    size,
                )
            )
    scores = {name: summarize(of_pictures) for name, of_pictures in counts.items()}
    metrics: dict[str, float] = {}
    for key in scores["any"]:
        values = [scores[f"class{k}"][key] for k in classes]
        metrics[key] = _mean(np.array(values))
        metrics |= {f"{key}/{name}": of_name[key] for name, of_name in scores.items()}
    return metrics


def evaluate(
    model: MaskRCNN,
    dataset: CellDataset,
    device: torch.device,
    truth: dict[str, Any] | None = None,
    min_score: float = 0.5,
    plots: Path | None = None,
) -> dict[str, float]:
    """The model's scores on ``dataset``: ``mask/AP50/class1``, ``box/AP``, ``dense/AP50``, ``dense/PQ``, ...

    Args:
        model, dataset, device: see :func:`predict_dataset`.
        truth: of the data set, where it is at hand already.
        min_score: see :func:`dense_metrics`.
        plots: a folder for ``precision_recall.png`` and ``classes.png``; None: no plots.

    Several processes share the pictures and get the same metrics, which process 0 computes: it alone needs ``truth``.
    """
    results = predict_dataset(model, dataset, device)

    def score() -> dict[str, float]:
        cells = truth if truth is not None else to_coco(dataset)
        return _all_metrics(cells, results, model.detections_per_image, min_score, plots)

    return distributed.from_main(score)


def _all_metrics(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    detections_per_image: int,
    min_score: float,
    plots: Path | None,
) -> dict[str, float]:
    metrics = {}
    precision = {}
    for name, iou_type in (("mask", "segm"), ("box", "bbox")):
        precision[name], evaluation = _coco_precision(truth, results, detections_per_image, iou_type)
        scores = _metrics(precision[name], evaluation)
        metrics.update({f"{name}/{key}": value for key, value in scores.items()})
    metrics.update({f"dense/{key}": value for key, value in dense_metrics(truth, results, min_score).items()})
    if plots is not None:
        names = [category["name"] for category in truth["categories"]]
        at_limit = precision["mask"][:, :, :, 0, -1]  # every size, the largest number of detections
        limit = evaluation.params.maxDets[-1]
        plot_precision_recall(at_limit, names, limit, plots / "precision_recall.png")
        cells = [len(evaluation.cocoGt.getAnnIds(catIds=[k])) for k in evaluation.params.catIds]
        plot_classes(metrics, names, cells, plots / "classes.png")
    return metrics


def _coco_precision(
    truth: dict[str, Any], results: list[dict[str, Any]], detections_per_image: int, iou_type: str
) -> tuple[np.ndarray, COCOeval]:
    """Precision [IoU, recall, class, area, limit] of :func:`coco_metrics`, and the evaluation with its parameters."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        # loadRes changes what it is given, and refuses an empty list
        detections = ground_truth.loadRes([dict(r) for r in results]) if results else COCO()
        evaluation = COCOeval(ground_truth, detections, iou_type)
        evaluation.params.maxDets = sorted({COCO_MAX_DETECTIONS, detections_per_image})
        if not results:
            return _precision_without_results(evaluation), evaluation
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation


def _count(cells: list[dict[str, Any]], found: list[dict[str, Any]], size: tuple[int, int]) -> Counts:
    planes = label_planes([cell["segmentation"] for cell in cells], size)
    return count(planes, label_image([result["segmentation"] for result in found], size))


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

    metrics: dict[str, float] = {}
    for index, limit in enumerate(params.maxDets):
        suffix = "" if limit == COCO_MAX_DETECTIONS else f"@{limit}"
        at_limit = precision[:, :, :, 0, index]  # area range 0 is "all"
        for name, threshold in of_threshold.items():
            metrics[name + suffix] = _mean(at_limit[threshold])
            for position, category in enumerate(params.catIds):
                metrics[f"{name}{suffix}/class{category}"] = _mean(at_limit[threshold][..., position])
    return metrics


def _mean(values: np.ndarray) -> float:
    """Without the -1 of classes that have no cell."""
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0
