"""Lower scores for detections that overlap better ones: of two outlines of one cell, one is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

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
    overlaps: list[list[int]] = [[] for _ in range(len(cells))]  # of each detection, the better ones that it overlaps
    for pairs in near_pairs(cells.boxes.numpy()):
        pairs = np.sort(pairs, axis=1)
        shared, areas = shared_pixels(cells, pairs)
        for better, worse in pairs[shared > SHARED * areas.min(axis=1)].tolist():
            overlaps[worse].append(better)
    lowered = np.zeros(len(cells), bool)
    for index, better in enumerate(overlaps):
        lowered[index] = any(not lowered[other] for other in better)
    scores = cells.scores.clone()
    scores[lowered] *= factor
    return replace(cells, scores=scores).select(scores.argsort(descending=True, stable=True))


def shared_pixels(
    cells: Detections, pairs: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Compare the masks of pairs of detections.

    Args:
        cells: detections in pixels of an image.
        pairs: int64 [P, 2], indices of detections; only the masks of these are made.

    Returns:
        The number of pixels that both masks of each pair have, int64 [P], and the areas of both masks, int64 [P, 2].
    """
    involved = np.unique(pairs)
    windows = cell_windows(cells.select(torch.from_numpy(involved)).to_rle())
    own = np.searchsorted(involved, pairs)
    parts = [windows.intersections(own[start : start + BATCH]) for start in range(0, max(1, len(own)), BATCH)]
    return np.concatenate(parts), windows.areas[own]


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
