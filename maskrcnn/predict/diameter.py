"""How large the cells of a picture are: found by looking at it at several scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from maskrcnn.data.picture import Picture
from maskrcnn.data.transforms import SCALE_LIMITS, scale_to
from maskrcnn.predict.tiles import CUT_MARGIN, Tile, inner_room
from maskrcnn.predict.windows import REDUCED, representative_windows
from maskrcnn.structures import Detections

LOOK = 512 * 512
"""Pixels that a look at one scale shows to the network, at least..."""
LARGEST_LOOK = 1024 * 1024
"""... and at most; of larger pictures an eighth, in windows that represent the whole."""
WINDOW = 256
"""Side of these windows as the network sees them: several small ones say more about a picture than a large one."""

SURE = (0.8, 0.5)
"""Score from which a cell is measured: where none reaches the first, the second one. Unsure cells are smaller, and
often none."""

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
    picture: Picture, detect: Callable[[Sequence[Tensor]], list[Detections]], canonical: float
) -> float | None:
    """The median diameter in pixels of a picture's cells; None where none is found.

    Looks at the picture at half, once and twice its size, and beyond while the cells look best at the outermost scale.
    What the most trustworthy of these looks says gives the scale of a last one, which measures the cells at the size
    that the network knows best.

    Args:
        picture: of any size.
        detect: images uint8 [H, W, 3] of one size -> boxes and scores of what the network finds in each.
        canonical: the diameter that the network was trained for.
    """
    height, width = picture.size
    pixels = min(max(LOOK, height * width // 8), LARGEST_LOOK)
    seen_whole = height * width * SCALE_LIMITS[1] ** 2 <= pixels
    reduced = None if seen_whole else picture.reduced(REDUCED)

    def look(factor: float) -> _Look:
        return _look(picture.rescaled(factor), factor, _windows(picture, factor, pixels, reduced), detect, canonical)

    looks = {factor: look(factor) for factor in (0.5, 1.0, 2.0)}
    best = _best(looks)
    while best in (min(looks), max(looks)) and SCALE_LIMITS[0] < best < SCALE_LIMITS[1]:
        beyond = best / 2 if best < 1 else best * 2
        looks[beyond] = look(beyond)
        best = _best(looks)
    diameter = looks[best].diameter
    if diameter is None:
        return None
    return look(scale_to(canonical, diameter)).diameter or diameter


def _windows(picture: Picture, factor: float, pixels: int, reduced: npt.NDArray[np.uint8] | None) -> list[Tile]:
    """What is looked at of the picture rescaled by ``factor``: the whole, or windows with at most ``pixels``.

    They are chosen in the picture as it is, so that it need not be rescaled as a whole for that.
    """
    height, width = picture.rescaled(factor).size
    if height * width <= pixels:
        return [Tile(0, 0, height, width)]
    side = max(1, round(WINDOW / factor))
    windows = representative_windows(picture, side, max(1, round(pixels / factor**2)), reduced)
    size = [
        min(max(1, round(part * factor)), whole)
        for part, whole in zip((windows[0].height, windows[0].width), (height, width), strict=True)
    ]
    places = ((round(window.top * factor), round(window.left * factor)) for window in windows)
    return [Tile(min(top, height - size[0]), min(left, width - size[1]), size[0], size[1]) for top, left in places]


def _best(looks: dict[float, _Look]) -> float:
    """The factor of the most trustworthy look; without any cell that of the picture's own scale."""
    return max(looks, key=lambda factor: (looks[factor].trust, factor == 1))


def _look(
    picture: Picture,
    factor: float,
    windows: Sequence[Tile],
    detect: Callable[[Sequence[Tensor]], list[Detections]],
    canonical: float,
) -> _Look:
    images = [picture.read(w.top, w.left, w.height, w.width) for w in windows]
    found = [_whole(cells, window, picture.size) for cells, window in zip(detect(images), windows, strict=True)]
    scores = np.concatenate([cells.scores.numpy() for cells in found])
    diameters = np.concatenate([_diameters(cells) for cells in found])
    sure = next((scores >= score for score in SURE if (scores >= score).any()), None)
    if sure is None:
        return _Look(None, 0.0)
    median = float(np.median(diameters[sure]))
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
