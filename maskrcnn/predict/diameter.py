"""How large the cells of a picture are: found by looking at it at several scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from maskrcnn.data.picture import Picture
from maskrcnn.data.transforms import SCALE_LIMITS, scale_to
from maskrcnn.model import Detections
from maskrcnn.predict.tiles import CUT_MARGIN, Tile, inner_room
from maskrcnn.predict.windows import telling_windows

LOOK = 512 * 512
"""Pixels that a look at one scale shows to the network; of larger pictures windows speak for the whole."""

SURE = 0.6
"""Score from which a cell is measured."""

BOX_TO_CIRCLE = 1 / 1.04
"""Diameter of the circle of a cell's area over the geometric mean of its box's sides: 1 for an ellipse that lies along
the axes, less for one that does not; the median over the cells of 80 validation pictures (e.g. 0.95 to 1.0)."""


@dataclass(frozen=True)
class _Look:
    """What was seen at one scale.

    Attributes:
        diameter: in pixels of the picture, the median of the cells that the network is sure of; None without any.
        trust: how much the look is worth: the mean score of all cells, less where they have another size than the
            network was trained for. Scores are highest at the scale that it was trained for.
    """

    diameter: float | None
    trust: float


def estimate_diameter(
    picture: Picture, detect: Callable[[Sequence[Tensor]], list[Detections]], canonical: float, side: int = 512
) -> float | None:
    """The median diameter in pixels of a picture's cells; None where none is found.

    Looks at the picture at half, once and twice its size, and farther to the side where the cells look best. What the
    most trustworthy of these looks says gives the scale of a last one, which measures the cells at the size that the
    network knows best.

    Args:
        picture: of any size.
        detect: images uint8 [H, W, 3] of one size -> boxes and scores of what the network finds in each.
        canonical: the diameter that the network was trained for.
        side: longest side of a window, in pixels that the network sees.
    """

    def look(factor: float) -> _Look:
        return _look(picture.rescaled(factor), factor, detect, canonical, side)

    looks = {factor: look(factor) for factor in (0.5, 1.0, 2.0)}
    best = _best(looks)
    while best in (min(looks), max(looks)) and SCALE_LIMITS[0] < best < SCALE_LIMITS[1]:
        further = best / 2 if best < 1 else best * 2
        looks[further] = look(further)
        best = _best(looks)
    diameter = looks[best].diameter
    if diameter is None:
        return None
    return look(scale_to(canonical, diameter)).diameter or diameter


def _best(looks: dict[float, _Look]) -> float:
    """The factor of the most trustworthy look; without any cell that of the picture's own scale."""
    return max(looks, key=lambda factor: (looks[factor].trust, factor == 1))


def _look(
    picture: Picture,
    factor: float,
    detect: Callable[[Sequence[Tensor]], list[Detections]],
    canonical: float,
    side: int,
) -> _Look:
    windows = telling_windows(picture, side, LOOK)
    images = [picture.read(w.top, w.left, w.height, w.width) for w in windows]
    found = [_whole(cells, window, picture.size) for cells, window in zip(detect(images), windows, strict=True)]
    scores = np.concatenate([cells.scores.numpy() for cells in found])
    diameters = np.concatenate([_diameters(cells) for cells in found])[scores >= SURE]
    if not len(diameters):
        return _Look(None, 0.0)
    median = float(np.median(diameters))
    octaves = math.log2(median / canonical)
    return _Look(median / factor, float(scores.mean()) * math.exp(-(octaves**2) / 2))


def _whole(cells: Detections, window: Tile, size: tuple[int, int]) -> Detections:
    """Without those that a border of the window cuts, unless it is the picture's."""
    boxes = cells.boxes + cells.boxes.new_tensor([window.left, window.top] * 2)
    return cells.select(inner_room(boxes, window, size) > CUT_MARGIN)


def _diameters(cells: Detections) -> np.ndarray:
    """float64 [K]: of each cell the diameter in pixels of the circle of its area, from its box alone."""
    sides = (cells.boxes[:, 2:] - cells.boxes[:, :2]).double()
    return (sides.prod(dim=1).sqrt() * BOX_TO_CIRCLE).numpy()
