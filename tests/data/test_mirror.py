"""Mirror padding, against numpy's padding and connected components."""

from __future__ import annotations

import numpy as np
import torch
from skimage.measure import label

from maskrcnn.data.mirror import mirror_to
from maskrcnn.data.sample import Sample
from maskrcnn.structures import InstanceLabels


def _sample(planes: np.ndarray, classes: list[int]) -> Sample:
    pixels = np.random.default_rng(0).integers(0, 255, (*planes.shape[1:], 3), dtype=np.uint8)
    labels = InstanceLabels.from_planes(torch.from_numpy(planes.astype(np.int32)), classes)
    return Sample(torch.from_numpy(pixels), labels, "cells", 1)


def _planes() -> np.ndarray:
    """Plane 0: a cell inside, one at the bottom, one in the bottom right corner; plane 1: one over the whole width."""
    planes = np.zeros((2, 20, 30), int)
    planes[0, 3:8, 4:9], planes[0, 15:20, 10:14], planes[0, 16:20, 25:30] = 7, 2, 5
    planes[1, 10:13] = 40
    return planes


def test_pixels_are_mirrored_at_each_edge() -> None:
    sample = _sample(_planes(), [1, 2])
    filled = mirror_to(sample, 64, 50)
    assert filled.size == filled.labels.size == (64, 50)
    assert np.array_equal(filled.image.numpy(), np.pad(sample.image.numpy(), ((0, 44), (0, 20), (0, 0)), "symmetric"))


def test_cells_are_connected_components() -> None:
    """Every cell is in one piece here, so that its copies are the connected pieces of equal value in the result."""
    planes = _planes()
    filled = mirror_to(_sample(planes, [1, 2]), 64, 75).labels
    for plane, cls in ((0, 1), (1, 2)):
        padded = np.pad(planes[plane], ((0, 44), (0, 45)), "symmetric")
        pieces = label(padded, background=0, connectivity=1)
        own = [index for index in range(len(filled)) if int(filled.plane[index]) == plane]
        assert len(own) == pieces.max()
        assert all(int(filled.classes[index]) == cls for index in own)
        for index in own:
            mask = filled.mask(index).numpy()
            (piece,) = np.unique(pieces[mask])
            assert np.array_equal(mask, pieces == piece)
            assert int(filled.areas[index]) == mask.sum()


def test_a_cell_in_two_pieces_stays_one() -> None:
    planes = np.zeros((1, 16, 16), int)
    planes[0, 2:4, 2:4] = planes[0, 8:10, 8:10] = 3
    filled = mirror_to(_sample(planes, [1]), 16, 32).labels
    assert filled.areas.tolist() == [8, 8]


def test_what_is_large_enough_stays() -> None:
    sample = _sample(_planes(), [1, 2])
    assert mirror_to(sample, 20, 30) is sample
    assert mirror_to(sample, 10, 10) is sample


def test_a_picture_without_cells() -> None:
    filled = mirror_to(Sample(torch.zeros(5, 6, 3, dtype=torch.uint8), InstanceLabels.empty(5, 6), "none", 1), 16, 16)
    assert len(filled.labels) == 0
    assert filled.size == filled.labels.size == (16, 16)
