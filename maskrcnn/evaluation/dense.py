"""Scores of label images that are full of cells: AP = TP / (TP + FP + FN), and panoptic quality.

COCO's average precision ranks the detections of all pictures by their scores. People who segment cells hold two label
images against each other instead: every pixel belongs to one cell at most, and a predicted cell is right or wrong.

    AP_t = TP_t / (TP_t + FP_t + FN_t)             pairs of IoU >= t (Schmidt et al. 2018, StarDist, section 3)
    PQ = DQ * SQ                                   pairs of IoU > 0.5 (Kirillov et al. 2019, eq. 1 and 2)
    DQ = TP / (TP + FP / 2 + FN / 2)               detection (their RQ): the F1 score
    SQ = mean IoU of the pairs                     mask quality of the matched cells alone

A predicted and a true cell form a pair at most once. All costs grow with pixels, cells and overlaps: never with cells
times cells or cells times pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array

from maskrcnn.evaluation.coco_ap import mean_of_known
from maskrcnn.structures.rle import label_image, label_planes

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""IoU thresholds of ``AP``, as StarDist and Cellpose report it."""

ABOVE_HALF = float(np.nextafter(0.5, 1))
"""The smallest IoU above 0.5: panoptic quality excludes 0.5 itself."""

AT = {"AP50": 0.5, "AP75": 0.75, "AP90": 0.9}
"""The thresholds that are reported alone."""

POOLED = ("AP", *AT, "PQ", "DQ", "SQ")
PER_PICTURE = ("AP_pictures", *(f"{name}_pictures" for name in AT), "PQ_pictures")


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a true and a predicted cell that share a pixel.

    Attributes:
        truth, predicted: int64 [M], values in the label images.
        iou: float64 [M], their intersection over union, above 0.
        num_truth, num_predicted: cells that have a pixel.
    """

    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    num_truth: int
    num_predicted: int


@dataclass(frozen=True)
class Counts:
    """What the scores of one picture, or of several together, follow from.

    Attributes:
        num_truth, num_predicted: cells.
        matched: int64 [9], pairs at each of ``THRESHOLDS``.
        panoptic_matched: pairs of IoU > 0.5.
        panoptic_iou: the sum of their IoU.
    """

    num_truth: int
    num_predicted: int
    matched: npt.NDArray[np.int64]
    panoptic_matched: int
    panoptic_iou: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.num_truth + other.num_truth,
            self.num_predicted + other.num_predicted,
            self.matched + other.matched,
            self.panoptic_matched + other.panoptic_matched,
            self.panoptic_iou + other.panoptic_iou,
        )

    def scores(self) -> dict[str, float]:
        """``POOLED`` by name, 0..1; ``AP`` is the mean over ``THRESHOLDS``. 0 where there is no cell at all."""
        union = self.num_truth + self.num_predicted - self.matched
        precision = self.matched / np.maximum(union, 1)
        detection = 2 * self.panoptic_matched / max(self.num_truth + self.num_predicted, 1)
        quality = self.panoptic_iou / max(self.panoptic_matched, 1)
        return {
            "AP": float(precision.mean()),
            **{name: float(precision[THRESHOLDS.index(threshold)]) for name, threshold in AT.items()},
            "PQ": detection * quality,
            "DQ": detection,
            "SQ": quality,
        }


def overlaps(truth: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> Overlaps:
    """The pairs of cells that share a pixel, from a sparse contingency table of the two label images.

    Args:
        truth: integer [H, W], or [P, H, W] where true cells overlap each other; 0 is background, a cell has a value of
            its own (over all planes), and the tables are as long as the largest value.
        predicted: integer [H, W], likewise.

    Raises:
        ValueError: for another shape, or a negative value.
    """
    planes = truth.reshape(-1, *truth.shape[-2:])
    if predicted.shape != planes.shape[1:]:
        raise ValueError(f"predicted: shape {predicted.shape}, expected {planes.shape[1:]} as truth has it")
    if min(planes.min(initial=0), predicted.min(initial=0)) < 0:
        raise ValueError("truth, predicted: a negative value, expected 0 for background and cells above")
    truth_areas = np.bincount(planes[planes > 0].astype(np.int64))
    predicted_areas = np.bincount(predicted[predicted > 0].astype(np.int64))
    both = (planes > 0) & (predicted > 0)
    rows, columns = planes[both], np.broadcast_to(predicted, planes.shape)[both]
    table = coo_array(
        (np.ones(len(rows), np.int64), (rows, columns)), (len(truth_areas) or 1, len(predicted_areas) or 1)
    )
    table = table.tocsr().tocoo()  # a counting sort: adds up equal pairs in linear time
    rows, columns = table.row.astype(np.int64), table.col.astype(np.int64)
    union = truth_areas[rows] + predicted_areas[columns] - table.data
    counts = (int(np.count_nonzero(areas)) for areas in (truth_areas, predicted_areas))
    return Overlaps(rows, columns, table.data / union, *counts)


def match(pairs: Overlaps, threshold: float) -> npt.NDArray[np.float64]:
    """The IoU of the pairs that are matched at IoU >= ``threshold``, each cell in one pair at most: float64 [TP].

    As many pairs as possible, and among such choices the one of the largest sum of IoU. Above 0.5, and with true cells
    that do not overlap each other, no cell has two partners to choose from (Kirillov et al. 2019, section 4.1); where
    one does, the Hungarian algorithm decides, among these cells alone.
    """
    keep = pairs.iou >= threshold
    truth, predicted, iou = pairs.truth[keep], pairs.predicted[keep], pairs.iou[keep]
    if not len(iou):
        return iou
    alone = (np.bincount(truth)[truth] == 1) & (np.bincount(predicted)[predicted] == 1)
    rows, row = np.unique(truth[~alone], return_inverse=True)
    columns, column = np.unique(predicted[~alone], return_inverse=True)
    if not len(rows):
        return iou
    table = np.zeros((len(rows), len(columns)))
    table[row, column] = iou[~alone]
    # all IoU together count less than one pair more
    chosen = table[linear_sum_assignment((table > 0) + table / (2 * min(table.shape)), maximize=True)]
    return np.concatenate([iou[alone], chosen[chosen > 0]])


def count(truth: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> Counts:
    """Cells and matched pairs of one picture; label images as :func:`overlaps` takes them."""
    pairs = overlaps(truth, predicted)
    panoptic = match(pairs, ABOVE_HALF)
    matched = np.array([len(match(pairs, threshold)) for threshold in THRESHOLDS], np.int64)
    return Counts(pairs.num_truth, pairs.num_predicted, matched, len(panoptic), float(panoptic.sum()))


def summarize(pictures: Sequence[Counts]) -> dict[str, float]:
    """Scores of a data set, or of one class in it.

    Returns:
        ``POOLED``: from TP, FP and FN added up over the pictures, so that every cell counts alike. This is StarDist's
        AP (its ``matching_dataset``) and Kirillov's PQ.

        ``PER_PICTURE``: the mean of the pictures' own scores, so that every picture counts alike. ``AP_pictures`` and
        its kind are what Cellpose reports (Stringer et al. 2021), over the pictures with a true or a predicted cell.
        ``PQ_pictures`` is averaged as MoNuSAC 2020 does (Verma et al. 2021, and their PQ_metric.ipynb): over the
        pictures with a true cell of the class. Cells predicted in a picture without one cost nothing there, in all
        other scores they do.

        Values in 0..1; all are -1 if no picture has a true cell, as pycocotools says it.
    """
    total = sum(pictures, Counts(0, 0, np.zeros(len(THRESHOLDS), np.int64), 0, 0.0))
    if total.num_truth == 0:
        return dict.fromkeys((*POOLED, *PER_PICTURE), -1.0)
    scores = total.scores()
    each = [one.scores() for one in pictures if one.num_truth or one.num_predicted]
    for name in ("AP", *AT):
        scores[f"{name}_pictures"] = float(np.mean([one[name] for one in each]))
    scores["PQ_pictures"] = float(np.mean([one.scores()["PQ"] for one in pictures if one.num_truth]))
    return scores


def dense_metrics(
    truth: dict[str, Any], results: list[dict[str, Any]], score_threshold: float | Sequence[float] = 0.5
) -> dict[str, float]:
    """AP = TP / (TP + FP + FN) and panoptic quality, which suit dense cells.

    In each picture the results become a label image: those of at least ``score_threshold``, the higher score in front
    where masks overlap, without one that is hidden altogether. For the scores of a class it holds the results of that
    class alone, as its true cells have a label file of their own.

    Args:
        truth, results: see :func:`maskrcnn.evaluation.coco_ap.coco_metrics`; all segmentations are RLE with text
            counts.
        score_threshold: lowest score of a predicted cell, one for all or one for each class. These scores know no
            ranking: they rate what a user gets who keeps such cells.

    Returns:
        For each name that :func:`summarize` explains: ``AP50/class1``, ...; ``AP50/any``, for the cells of all classes
        taken as one, as StarDist and Cellpose have them; and ``AP50``, the arithmetic mean over the classes that have
        cells (MoNuSAC 2020 ranked by a weighted mean; here all classes count alike).
    """
    return dense_scores(count_cells(truth, results, score_threshold))


def count_cells(
    truth: dict[str, Any], results: list[dict[str, Any]], score_threshold: float | Sequence[float] = 0.5
) -> dict[str, list[Counts]]:
    """The counts of each picture for ``class1``, ``class2``, ... and ``any``, which :func:`dense_metrics` adds up."""
    cells_of, found_of = defaultdict(list), defaultdict(list)
    classes = [category["id"] for category in truth["categories"]]
    scores_of = [score_threshold] * len(classes) if isinstance(score_threshold, float | int) else score_threshold
    lowest = dict(zip(classes, scores_of, strict=True))
    for annotation in truth["annotations"]:
        cells_of[annotation["image_id"]].append(annotation)
    for result in results:
        if result["score"] >= lowest[result["category_id"]]:
            found_of[result["image_id"]].append(result)
    counts: dict[str, list[Counts]] = {name: [] for name in ("any", *(f"class{k}" for k in classes))}
    for image in truth["images"]:
        cells = cells_of[image["id"]]
        found = sorted(found_of[image["id"]], key=lambda result: result["score"])  # label_image shows the last one
        size = image["height"], image["width"]
        counts["any"].append(_count_results(cells, found, size))
        for k in classes:
            counts[f"class{k}"].append(
                _count_results(
                    [cell for cell in cells if cell["category_id"] == k],
                    [result for result in found if result["category_id"] == k],
                    size,
                )
            )
    return counts


def dense_scores(counts: dict[str, list[Counts]]) -> dict[str, float]:
    """The scores of :func:`dense_metrics` from what :func:`count_cells` gives."""
    scores = {name: summarize(of_pictures) for name, of_pictures in counts.items()}
    metrics: dict[str, float] = {}
    for key in scores["any"]:
        values = [of_name[key] for name, of_name in scores.items() if name != "any"]
        metrics[key] = mean_of_known(np.array(values))
        metrics |= {f"{key}/{name}": of_name[key] for name, of_name in scores.items()}
    return metrics


def _count_results(cells: list[dict[str, Any]], found: list[dict[str, Any]], size: tuple[int, int]) -> Counts:
    planes = label_planes([cell["segmentation"] for cell in cells], size)
    return count(planes, label_image([result["segmentation"] for result in found], size))
