"""Cells with known pixels, from a few pixels to a hundred, for tests of masks."""

from __future__ import annotations

import numpy as np
import torch
from skimage.draw import polygon2mask
from torch import Tensor

from maskrcnn.structures import InstanceLabels


def ellipse(side: float, rng: np.random.Generator) -> np.ndarray:
    """bool [H, W]: longest diameter ``side``, any angle, off the pixels' grid; with some background around it."""
    size = int(side) + 12
    long, short = side / 2, side / 2 * rng.uniform(0.5, 1)
    angle, (cy, cx) = rng.uniform(0, np.pi), size / 2 + rng.uniform(-0.5, 0.5, 2)
    y, x = np.mgrid[:size, :size] + 0.5
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    return (along / long) ** 2 + (across / short) ** 2 <= 1


def polygon(side: float, rng: np.random.Generator) -> np.ndarray:
    """bool [H, W]: 6 to 12 corners in all directions from the centre, ``side`` / 2 away or up to half as far."""
    size, corners = int(side) + 12, rng.integers(6, 13)
    angle = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    radius = side / 2 * rng.uniform(0.5, 1, corners)[:, None]
    points = size / 2 + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return polygon2mask((size, size), points)


def noise(side: int, rng: np.random.Generator) -> np.ndarray:
    """bool [side + 12, side + 12]: each pixel of a square, or not, by chance; its corners belong to it."""
    inner = rng.random((side, side)) < 0.5
    inner[[0, -1], [0, -1]] = True
    return np.pad(inner, 6)


def instance(mask: np.ndarray) -> InstanceLabels:
    """The label planes of one cell."""
    return InstanceLabels.from_planes(torch.from_numpy(mask.astype(np.int32))[None], [1])


def wider(box: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """A box float32 [1, 4] with each side moved outwards by up to ``most`` pixels, so that it is not whole any more."""
    return box + torch.tensor([-1, -1, 1, 1]) * torch.from_numpy(rng.uniform(0, most, 4)).float()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())
