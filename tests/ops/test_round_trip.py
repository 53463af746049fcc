"""From a cell to the target of the mask head and back to pixels: what a perfect box and a perfect mask head give.

Bins of a target and pixels are at most 1 pixel apart as long as a box has no more pixels than bins. A target's bin is
then one sample between two pixels per axis, and a pixel is read between two bins per axis. Where these are ``d`` of a
pixel apart, the pixel alone among its neighbours keeps at least ``1 - d / 2`` per axis, so that it is above one half if
``(1 - d / 2) ** 2`` is: with 28 bins every mask comes back, whatever it is, from a box of up to 16.4 pixels a side that
contains it. Above, outlines must be smooth; above 28 pixels bins are coarser than pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn import ops
from maskrcnn.structures import InstanceLabels
from tests.shapes import ellipse, instance, iou, noise, polygon, wider

BINS = 28
CELLS = 40  # of each size


def there_and_back(cell: InstanceLabels, box: Tensor, aligned: bool = True) -> np.ndarray:
    """bool [H, W]: the target of the one cell at ``box`` float32 [1, 4], pasted."""
    target = ops.crop_labels(cell.planes, box, cell.plane, cell.ids, BINS, aligned=aligned)
    (rle,) = ops.masks_to_rle(target, box, cell.size, aligned=aligned)
    return coco_mask.decode(rle).astype(bool)


def ious(draw: Callable, side: float, spread: float, aligned: bool = True) -> np.ndarray:
    """Of cells of one size: float64 [CELLS]; ``spread``: pixels by which each side of the tight box may be moved."""
    rng = np.random.default_rng(int(side))
    values = []
    for _ in range(CELLS):
        mask = draw(side, rng)
        cell = instance(mask)
        values.append(iou(mask, there_and_back(cell, wider(cell.boxes, spread, rng), aligned)))
    return np.array(values)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 11, 14, 16])
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_every_mask_of_16_pixels_comes_back(side: int, spread: float) -> None:
    """From its tight box, and from one that is not of whole pixels: 16.4 pixels a side at most."""
    assert ious(noise, side, spread).min() == 1


@pytest.mark.parametrize("side", [6, 8, 10, 14, 20, 28])
def test_ellipses_of_28_pixels_come_back_from_their_tight_boxes(side: int) -> None:
    assert ious(ellipse, side, spread=0).min() == 1


@pytest.mark.parametrize("side", [6, 8, 10, 14, 20, 28, 40, 56, 80])
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("draw", [ellipse, polygon])
def test_smooth_cells_come_back(draw: Callable, side: int, spread: float) -> None:
    """Up to 80 pixels, where a bin has 3 of them, and in boxes that are not whole and up to 2 pixels too wide."""
    assert ious(draw, side, spread).min() >= 0.98


def test_torchvisions_pair_loses_the_rim_of_small_cells() -> None:
    """What the exact convention is for, and that these tests can fail."""
    assert ious(ellipse, 10, spread=0, aligned=False).mean() < 0.8
    assert ious(ellipse, 20, spread=0, aligned=False).mean() < 0.95
