"""How large the cells of a picture are: found by looking at it at several scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from maskrcnn.data.picture import Picture
from maskrcnn.data.transforms import scale_to
from maskrcnn.model import Detections
from maskrcnn.predict.windows import telling_windows

LOOK = 512 * 512
"""Pixels that a look at one scale shows to the network; of larger pictures windows speak for the whole."""

LOOKS = 3
CLOSE = 0.1
"""Octaves between two looks within which the second has confirmed the first."""

SURE = 0.5
"""Score of the cells that are measured."""


def estimate_diameter(
    picture: Picture, detect: Callable[[Sequence[Tensor]], list[Detections]], canonical: float
) -> float | None:
    """The median diameter in pixels of a picture's cells; None where none is found.

    Args:
        picture: of any size.
        detect: images uint8 [H, W, 3] of one size -> what the network finds in each.
        canonical: the diameter that the network was trained for.
    """
    diameter: float | None = None
    factor = 1.0
    for _ in range(LOOKS):
        found = _look(picture.rescaled(factor), detect)
        if not len(found):
            break
        before, diameter = diameter, float(np.median(found)) / factor
        if before is not None and abs(np.log2(diameter / before)) < CLOSE:
            break
        factor = scale_to(canonical, diameter)
    return diameter


def _look(picture: Picture, detect: Callable[[Sequence[Tensor]], list[Detections]]) -> np.ndarray:
    """float64 [N]: diameters in pixels of the cells that the network is sure of."""
    windows = telling_windows(picture, 512, LOOK)
    images = [picture.read(w.top, w.left, w.height, w.width) for w in windows]
    cells = [one.filter(SURE) for one in detect(images)]
    return np.concatenate([cell_diameters(one) for one in cells])


def cell_diameters(cells: Detections) -> np.ndarray:
    """float64 [K]: of each cell the diameter, in pixels, of the circle of equal area."""
    sides = (cells.boxes[:, 2:] - cells.boxes[:, :2]).double()
    covered = (cells.masks.float() > cells.mask_threshold).double().mean(dim=(1, 2))
    return (2 * (sides.prod(dim=1) * covered / np.pi).sqrt()).numpy()
