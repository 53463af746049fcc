"""Estimation of the cell diameter of a picture, from detections at several scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from maskrcnn.data.picture import Picture
from maskrcnn.data.transforms import SCALE_LIMITS, scale_to
from maskrcnn.predict.tiles import CUT_MARGIN, Tile, inner_distance
from maskrcnn.predict.windows import representative_windows
from maskrcnn.structures import Detections

MIN_PIXELS, MAX_PIXELS = 512 * 512, 1024 * 1024
"""Number of pixels for the network per scale: an eighth of the picture within these limits, in representative
windows."""
WINDOW = 256
"""Side of these windows in the network's pixels: several small windows represent a picture better than a large one."""

CONFIDENT_SCORES = (0.8, 0.5)
"""Minimum score of the cells that are measured; the second one if no cell reaches the first. Cells with lower scores
are smaller, and often false positives."""

BOX_TO_CIRCLE = 1 / 1.04
"""Diameter of the circle of a cell's area divided by the geometric mean of the sides of its box: 1 for an ellipse along
the axes, less for others; the median over the cells of 80 validation pictures (e.g. 0.95 to 1.0)."""


DOUBTFUL = 10
"""Number of cells with a score of 0 that are counted besides those that were found: the mean score of a few large cells
must be higher than that of many small ones, which may be the same cells, seen as clumps."""


NEAR, CLOSE = 0.5, 0.25
"""Octaves between the cells' size at the best scale and the canonical diameter up to which no further scale is looked
at, and up to which the cells are not measured again. The error is the same as without either, at half the pixels:
benchmarks/results/nuclei/README.md."""


@dataclass(frozen=True)
class _Measurement:
    """The cell diameter found at one scale.

    Attributes:
        diameter: median diameter of cells with confident scores, in pixels of the picture; None without cells.
        octaves: distance at this scale between the canonical diameter and that one, or the median of all cells weighted
            by their scores if it is further away: small cells may have low scores; infinite without cells.
        confidence: mean score of all cells, reduced if there are few (:data:`DOUBTFUL`) or if their size at this scale
            differs from the canonical diameter. Scores are highest at the scale that the network was trained for.
    """

    diameter: float | None
    octaves: float
    confidence: float


def estimate_diameter(
    picture: Picture, detect: Callable[[Sequence[Tensor]], list[Detections]], canonical: float
) -> float | None:
    """Estimate the median diameter of a picture's cells in pixels; None if no cell is found.

    Detects cells at the picture's size and at half of it, and at further factors of 2 while the outermost scale has the
    highest confidence and its cells are not :data:`NEAR` the canonical diameter. Unless they are :data:`CLOSE` to it at
    the scale with the highest confidence, they are measured again at the scale at which they are as large.

    Args:
        picture: a picture of any size.
        detect: images uint8 [H, W, 3] of one size -> detections of each; only boxes and scores are used.
        canonical: the cell diameter that the network was trained for, in pixels.
    """
    height, width = picture.size
    pixels = min(max(MIN_PIXELS, height * width // 8), MAX_PIXELS)

    def measure(factor: float) -> _Measurement:
        windows = _windows(picture, factor, pixels)
        return _measure(picture.rescaled(factor), factor, windows, detect, canonical)

    measured = {factor: measure(factor) for factor in (0.5, 1.0)}
    best = _best(measured)
    while best in (min(measured), max(measured)) and SCALE_LIMITS[0] < best < SCALE_LIMITS[1]:
        if measured[best].octaves <= NEAR:
            break
        further = best / 2 if best < 1 else best * 2
        measured[further] = measure(further)
        best = _best(measured)
    diameter = measured[best].diameter
    if diameter is None or measured[best].octaves <= CLOSE:
        return diameter
    return measure(scale_to(canonical, diameter)).diameter or diameter


def _windows(picture: Picture, factor: float, pixels: int) -> list[Tile]:
    """Windows of the picture rescaled by ``factor`` with at most ``pixels`` in total, or the whole picture.

    They are chosen at the original scale, so that the whole picture need not be rescaled.
    """
    height, width = picture.rescaled(factor).size
    if height * width <= pixels:
        return [Tile(0, 0, height, width)]
    side = max(1, round(WINDOW / factor))
    windows = representative_windows(picture, side, max(1, round(pixels / factor**2)))
    size = [
        min(max(1, round(side * factor)), length)
        for side, length in zip((windows[0].height, windows[0].width), (height, width), strict=True)
    ]
    corners = ((round(window.top * factor), round(window.left * factor)) for window in windows)
    return [Tile(min(top, height - size[0]), min(left, width - size[1]), size[0], size[1]) for top, left in corners]


def _best(measured: dict[float, _Measurement]) -> float:
    """The factor with the highest confidence; 1 if no cell was found."""
    return max(measured, key=lambda factor: (measured[factor].confidence, factor == 1))


def _measure(
    picture: Picture,
    factor: float,
    windows: Sequence[Tile],
    detect: Callable[[Sequence[Tensor]], list[Detections]],
    canonical: float,
) -> _Measurement:
    images = [picture.read(w.top, w.left, w.height, w.width) for w in windows]
    found = [_without_cut(cells, window, picture.size) for cells, window in zip(detect(images), windows, strict=True)]
    scores = np.concatenate([cells.scores.numpy() for cells in found])
    diameters = np.concatenate([_diameters(cells) for cells in found])
    confident = next((scores >= score for score in CONFIDENT_SCORES if (scores >= score).any()), None)
    if confident is None:
        return _Measurement(None, math.inf, 0.0)
    median = float(np.median(diameters[confident]))
    octaves = abs(math.log2(median / canonical))
    mean = float(scores.sum()) / (len(scores) + DOUBTFUL)
    of_all = math.log2(_weighted_median(diameters, scores) / canonical)
    return _Measurement(median / factor, max(octaves, abs(of_all)), mean * math.exp(-(octaves**2)))


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _without_cut(cells: Detections, window: Tile, size: tuple[int, int]) -> Detections:
    """The detections without those that are cut by a border of the window which is not a border of the picture."""
    boxes = cells.boxes + cells.boxes.new_tensor([window.left, window.top] * 2)
    return cells.select(inner_distance(boxes, window, size) > CUT_MARGIN)


def _diameters(cells: Detections) -> np.ndarray:
    """Diameters in pixels of circles with the cells' areas, estimated from the boxes, float64 [K]."""
    sides = (cells.boxes[:, 2:] - cells.boxes[:, :2]).double()
    return (sides.prod(dim=1).sqrt() * BOX_TO_CIRCLE).numpy()
