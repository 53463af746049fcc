"""Scores for label images of dense cells: AP = TP / (TP + FP + FN), and panoptic quality.

COCO's average precision ranks the detections of all pictures by their scores. In cell segmentation, two label images
are compared instead: every pixel belongs to at most one cell, and a predicted cell is correct or not.

    AP_t = TP_t / (TP_t + FP_t + FN_t)             pairs of IoU >= t (Schmidt et al. 2018, StarDist, section 3)
    PQ = DQ * SQ                                   pairs of IoU > 0.5 (Kirillov et al. 2019, eq. 1 and 2)
    DQ = TP / (TP + FP / 2 + FN / 2)               detection (their RQ): the F1 score
    SQ = mean IoU of the pairs                     mask quality of the matched cells only

Each cell is in at most one pair. Time and memory grow with pixels, cells and overlaps: never with cells times cells or
cells times pixels.
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
from scipy.sparse.csgraph import connected_components

from maskrcnn.evaluation.coco_ap import mean_of_known
from maskrcnn.structures.rle import label_image, label_planes

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""IoU thresholds of ``AP``, as StarDist and Cellpose report it."""

ABOVE_HALF = float(np.nextafter(0.5, 1))
"""The smallest IoU above 0.5: panoptic quality excludes 0.5 itself."""

AT = {"AP50": 0.5, "AP75": 0.75, "AP90": 0.9}
"""The thresholds that are also reported separately."""

POOLED = ("AP", *AT, "PQ", "DQ", "SQ")
PER_PICTURE = ("AP_pictures", *(f"{name}_pictures" for name in AT), "PQ_pictures")


@dataclass(frozen=True)
class Overlaps:
    """Pairs of a true and a predicted cell that share a pixel.

    Attributes:
        truth, predicted: int64 [M], ids in the label images.
        iou: float64 [M], intersection over union, above 0.
        num_truth, num_predicted: number of cells.
    """

    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    num_truth: int
    num_predicted: int


@dataclass(frozen=True)
class Counts:
    """Counts of cells and pairs from which the scores of one or several pictures are computed.

    Attributes:
        num_truth, num_predicted: number of cells.
        matched: int64 [9], number of pairs at each of ``THRESHOLDS``.
        panoptic_matched: number of pairs with IoU > 0.5.
        panoptic_iou: sum of their IoU.
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
        """The scores ``POOLED`` by name, 0..1; ``AP`` is the mean over ``THRESHOLDS``. 0 without any cell."""
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
    """Find the pairs of cells that share a pixel, from a sparse contingency table of the two label images.

    Args:
        truth: integer [H, W], or [P, H, W] if true cells overlap each other; 0 is background, ids are unique over all
            planes. Memory grows with the largest id.
        predicted: integer [H, W], likewise.

    Raises:
        ValueError: for different shapes, or a negative value.
    """
    planes = truth.reshape(-1, *truth.shape[-2:])
    if predicted.shape != planes.shape[1:]:
        raise ValueError(f"predicted: shape {predicted.shape}, expected {planes.shape[1:]} as truth")
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
    """Match true and predicted cells at IoU >= ``threshold``, each in at most one pair; returns the IoU of the pairs,
    float64 [TP].

    The number of pairs is maximized, then the sum of their IoU. Above 0.5, and if true cells do not overlap each other,
    the matching is unique (Kirillov et al. 2019, section 4.1); the Hungarian algorithm is only applied to cells with
    several candidates, to each group of them that is connected by candidates.
    """
    keep = pairs.iou >= threshold
    truth, predicted, iou = pairs.truth[keep], pairs.predicted[keep], pairs.iou[keep]
    if not len(iou):
        return iou
    unique = (np.bincount(truth)[truth] == 1) & (np.bincount(predicted)[predicted] == 1)
    matched = [iou[unique]]
    truth, predicted, iou = truth[~unique], predicted[~unique], iou[~unique]
    for group in _connected(truth, predicted):
        rows, row = np.unique(truth[group], return_inverse=True)
        columns, column = np.unique(predicted[group], return_inverse=True)
        table = np.zeros((len(rows), len(columns)))
        table[row, column] = iou[group]
        # the weights of all IoU together are less than that of one more pair
        chosen = table[linear_sum_assignment((table > 0) + table / (2 * min(table.shape)), maximize=True)]
        matched.append(chosen[chosen > 0])
    return np.concatenate(matched)


def _connected(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Divide pairs into groups that have no cell in common; returns the indices of each group's pairs."""
    if not len(truth):
        return []
    count = int(truth.max()) + 1
    nodes = count + int(predicted.max()) + 1
    graph = coo_array((np.ones(len(truth), np.int8), (truth, count + predicted)), (nodes, nodes))
    group = connected_components(graph, directed=False)[1][truth]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def count(truth: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> Counts:
    """Count cells and matched pairs of one picture; for the label images see :func:`overlaps`."""
    return count_pairs(overlaps(truth, predicted))


def count_pairs(pairs: Overlaps) -> Counts:
    """Count cells and matched pairs of one picture."""
    panoptic = match(pairs, ABOVE_HALF)
    matched = np.array([len(match(pairs, threshold)) for threshold in THRESHOLDS], np.int64)
    return Counts(pairs.num_truth, pairs.num_predicted, matched, len(panoptic), float(panoptic.sum()))


def summarize(pictures: Sequence[Counts]) -> dict[str, float]:
    """Scores of a data set, or of one class in it.

    Returns:
        ``POOLED``: from TP, FP and FN summed over the pictures, so that every cell has the same weight. This is
        StarDist's AP (its ``matching_dataset``) and Kirillov's PQ.

        ``PER_PICTURE``: the mean of the scores of the pictures, so that every picture has the same weight.
        ``AP_pictures``, ``AP50_pictures``, ... are what Cellpose reports (Stringer et al. 2021), over the pictures with
        a true or a predicted cell. ``PQ_pictures`` is averaged as in MoNuSAC 2020 (Verma et al. 2021, and their
        PQ_metric.ipynb): over the pictures with a true cell of the class; unlike in all other scores, cells predicted
        in pictures without one do not count.

        Values in 0..1; all are -1 if no picture has a true cell, as in pycocotools.
    """
    total = sum(pictures, Counts(0, 0, np.zeros(len(THRESHOLDS), np.int64), 0, 0.0))
    if total.num_truth == 0:
        return dict.fromkeys((*POOLED, *PER_PICTURE), -1.0)
    scores = total.scores()
    picture_scores = [counts.scores() for counts in pictures if counts.num_truth or counts.num_predicted]
    for name in ("AP", *AT):
        scores[f"{name}_pictures"] = float(np.mean([values[name] for values in picture_scores]))
    scores["PQ_pictures"] = float(np.mean([counts.scores()["PQ"] for counts in pictures if counts.num_truth]))
    return scores


def dense_metrics(
    truth: dict[str, Any], results: list[dict[str, Any]], score_threshold: float | Sequence[float] = 0.5
) -> dict[str, float]:
    """AP = TP / (TP + FP + FN) and panoptic quality of COCO results, for dense cells.

    The results of each picture with a score of at least ``score_threshold`` become a label image, in which the higher
    score wins where masks overlap. For the scores of a class it contains only the results of that class.

    Args:
        truth, results: see :func:`maskrcnn.evaluation.coco_ap.coco_metrics`; all segmentations are RLE with text
            counts.
        score_threshold: minimum score of a predicted cell, one for all classes or one per class. There is no ranking by
            score: cells above the threshold count equally.

    Returns:
        For each name of :func:`summarize`: ``AP50/class1``, ...; ``AP50/any``, with all classes merged, as in StarDist
        and Cellpose; and ``AP50``, the arithmetic mean over the classes that have cells (MoNuSAC 2020 used a weighted
        mean).
    """
    return dense_scores(count_cells(truth, results, score_threshold))


def count_cells(
    truth: dict[str, Any], results: list[dict[str, Any]], score_threshold: float | Sequence[float] = 0.5
) -> dict[str, list[Counts]]:
    """The counts of each picture for ``class1``, ``class2``, ... and ``any``, from which scores are computed."""
    cells_of, found_of = defaultdict(list), defaultdict(list)
    classes = [category["id"] for category in truth["categories"]]
    scores_of = [score_threshold] * len(classes) if isinstance(score_threshold, float | int) else score_threshold
    lowest = {k: np.float32(score) for k, score in zip(classes, scores_of, strict=True)}  # as Detections.filter
    for annotation in truth["annotations"]:
        cells_of[annotation["image_id"]].append(annotation)
    for result in results:
        if np.float32(result["score"]) >= lowest[result["category_id"]]:
            found_of[result["image_id"]].append(result)
    counts: dict[str, list[Counts]] = {name: [] for name in ("any", *(f"class{k}" for k in classes))}
    for image in truth["images"]:
        cells = cells_of[image["id"]]
        found = sorted(found_of[image["id"]], key=lambda result: result["score"])  # the last one wins in label_image
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


def precision_by_threshold(
    truth: dict[str, Any], results: list[dict[str, Any]], category_id: int, score_thresholds: Sequence[float]
) -> list[float]:
    """``AP`` of one class, as :func:`dense_metrics` has it, at several score thresholds, in the time of one.

    The higher score wins where masks overlap, so that raising the threshold only removes cells from the label image,
    and uncovers nothing.
    """
    cells_of, found_of = defaultdict(list), defaultdict(list)
    for annotation in truth["annotations"]:
        if annotation["category_id"] == category_id:
            cells_of[annotation["image_id"]].append(annotation["segmentation"])
    for result in results:
        if result["category_id"] == category_id:
            found_of[result["image_id"]].append(result)
    counts: list[list[Counts]] = [[] for _ in score_thresholds]
    for image in truth["images"]:
        found = sorted(found_of[image["id"]], key=lambda result: result["score"])  # the last one wins in label_image
        size = image["height"], image["width"]
        predicted = label_image([result["segmentation"] for result in found], size)
        pairs = overlaps(label_planes(cells_of[image["id"]], size), predicted)
        scores = np.array([-np.inf, *(result["score"] for result in found)], np.float32)
        visible = scores[np.unique(predicted)]
        for threshold, pictures in zip(np.array(score_thresholds, np.float32), counts, strict=True):
            kept = scores[pairs.predicted] >= threshold
            pictures.append(
                count_pairs(
                    Overlaps(
                        pairs.truth[kept],
                        pairs.predicted[kept],
                        pairs.iou[kept],
                        pairs.num_truth,
                        int((visible >= threshold).sum()),
                    )
                )
            )
    return [summarize(pictures)["AP"] for pictures in counts]


def dense_scores(counts: dict[str, list[Counts]]) -> dict[str, float]:
    """The scores of :func:`dense_metrics` from the result of :func:`count_cells`."""
    scores = {name: summarize(pictures) for name, pictures in counts.items()}
    metrics: dict[str, float] = {}
    for key in scores["any"]:
        values = [class_scores[key] for name, class_scores in scores.items() if name != "any"]
        metrics[key] = mean_of_known(np.array(values))
        metrics |= {f"{key}/{name}": class_scores[key] for name, class_scores in scores.items()}
    return metrics


def _count_results(cells: list[dict[str, Any]], found: list[dict[str, Any]], size: tuple[int, int]) -> Counts:
    planes = label_planes([cell["segmentation"] for cell in cells], size)
    return count(planes, label_image([result["segmentation"] for result in found], size))
