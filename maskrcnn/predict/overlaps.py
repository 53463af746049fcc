"""Lower scores for detections that overlap better ones: of two outlines of one cell, one is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from maskrcnn.structures import Detections
from maskrcnn.structures.rle import BATCH, cell_windows

SHARED = 0.5
"""Fraction of the smaller mask from which on two masks overlap."""

BLOCK = 256
"""Number of boxes that are compared at once with those near them."""


def lower_overlapping(cells: Detections, factor: float) -> Detections:
    """Multiply the scores of detections that overlap a better one by ``factor``.

    Non-maximum suppression compares boxes by their intersection over union: half a cell in the box of a whole one, or
    two cells taken for one, are kept beside the cells themselves. Here, masks are compared: a detection whose mask
    shares more than :data:`SHARED` of the smaller of the two with a detection of any class that has a higher score, and
    does not itself overlap a better one, is less sure. It is not removed, since it may still be the right one of the
    two (Bodla et al. 2017, Soft-NMS, section 3).

    Args:
        cells: detections in pixels of an image, highest score first.
        factor: 0..1; 1: unchanged.

    Returns:
        The same detections, highest score first.
    """
    if factor == 1 or len(cells) < 2:
        return cells
    windows = cell_windows(cells.to_rle())
    overlaps: list[list[int]] = [[] for _ in range(len(cells))]  # of each detection, the better ones that it overlaps
    for pairs in near_pairs(cells.boxes.numpy()):
        pairs = np.sort(pairs, axis=1)
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            shared = windows.intersections(part) > SHARED * windows.areas[part].min(axis=1)
            for better, worse in part[shared].tolist():
                overlaps[worse].append(better)
    lowered = np.zeros(len(cells), bool)
    for index, better in enumerate(overlaps):
        lowered[index] = any(not lowered[other] for other in better)
    scores = cells.scores.clone()
    scores[lowered] *= factor
    return replace(cells, scores=scores).select(scores.argsort(descending=True, stable=True))


def near_pairs(boxes: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs of boxes whose masks are worth comparing: they share more than half of :data:`SHARED` of the smaller box.

    Masks that fill little of their boxes, such as thin cells along their diagonals, may overlap in less.

    Boxes are compared in order of their upper sides, each block with the following ones that begin above its lowest
    side.

    Args:
        boxes: float [K, 4].

    Yields:
        int64 [P, 2], indices of the boxes of each pair; every pair once.
    """
    order = np.argsort(boxes[:, 1], kind="stable")
    boxes = boxes[order]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for start in range(0, len(boxes), BLOCK):
        block = boxes[start : start + BLOCK]
        stop = int(np.searchsorted(boxes[:, 1], block[:, 3].max()))
        others = boxes[start:stop]
        sides = np.minimum(block[:, None, 2:], others[:, 2:]) - np.maximum(block[:, None, :2], others[:, :2])
        smaller = np.minimum(areas[start : start + BLOCK, None], areas[start:stop])
        one, other = np.nonzero((sides > 0).all(axis=2) & (sides.prod(axis=2) > SHARED / 2 * smaller))
        following = other > one
        yield order[start + np.stack([one[following], other[following]], axis=1)]
