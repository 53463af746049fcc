"""Detections whose pixels are known, for the tests of the files that are written of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy import ndimage

from maskrcnn.structures import Detections

NAMES = ["epithelial", "lymphocyte, small", "macrophage"]
SIDE = 40


def detections_of(
    windows: list[np.ndarray], corners: list[tuple[int, int]], scores: list[float], size: tuple[int, int]
) -> Detections:
    """Detections whose pixels are those of ``windows`` (bool, up to SIDE x SIDE), the first at (top, left) each.

    The entries of the masks are the pixels of their boxes, which have SIDE pixels a side.
    """
    masks = torch.zeros(len(windows), SIDE, SIDE)
    for mask, window in zip(masks, windows, strict=True):
        mask[: window.shape[0], : window.shape[1]] = torch.from_numpy(window)
    boxes = torch.tensor([[left, top, left + SIDE, top + SIDE] for top, left in corners]).float().reshape(-1, 4)
    labels = torch.tensor([index % len(NAMES) + 1 for index in range(len(windows))], dtype=torch.int64)
    return Detections(boxes, torch.tensor(scores), labels, masks, size)


def disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return (y - SIDE / 2) ** 2 + (x - SIDE / 2) ** 2 < radius**2


def shapes() -> dict[str, np.ndarray]:
    """Masks that are hard to outline."""
    ring = disc(15) & ~disc(8)
    rng = np.random.default_rng(0)
    return {
        "disc": disc(12.3),
        "full": np.ones((SIDE, SIDE), bool),
        "one pixel": np.ones((1, 1), bool),
        "line": np.ones((1, 7), bool),
        "hole": ring,
        "island in a hole": ring | disc(4),
        "two parts": np.pad(np.ones((3, 4), bool), ((0, 9), (0, 0))) | np.pad(np.ones((3, 4), bool), ((9, 0), (0, 0))),
        "parts that touch at a corner": np.eye(4, dtype=bool),
        "hole that touches the outline at a corner": np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool),
        "holes that touch at a corner": np.pad(np.eye(3, dtype=bool), 1) ^ np.ones((5, 5), bool),
        "blob": ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 3) > 0.02,
        "noise": rng.random((SIDE, SIDE)) < 0.5,
        "dense noise": rng.random((SIDE, SIDE)) < 0.8,
    }


@cache
def apart() -> Detections:
    """Every shape, over several tiles, none over another."""
    windows = list(shapes().values())
    corners = [(230 + 60 * (index % 4), 20 + 90 * index) for index in range(len(windows))]
    return detections_of(windows, corners, np.linspace(0.9, 0.1, len(windows)).tolist(), (500, 1200))


@cache
def crowd() -> Detections:
    """Discs that overlap, some of equal scores, not in the order of their scores, and one without a pixel."""
    rng = np.random.default_rng(3)
    windows = [disc(radius) for radius in rng.uniform(2, 19, 60)]
    windows[7] = np.zeros((1, 1), bool)
    corners = [(int(y), int(x)) for y, x in rng.integers(0, [260, 560], (60, 2))]
    return detections_of(windows, corners, rng.choice([0.25, 0.5, 0.75, 0.9], 60).tolist(), (300, 600))


def masks_of(detections: Detections) -> np.ndarray:
    """bool [K, H, W] by pycocotools."""
    rles: Any = detections.to_rle()
    return np.moveaxis(coco_mask.decode(rles), 2, 0).astype(bool)


def picture_of(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (*size, 3), dtype=np.uint8)


def reader_of(picture: np.ndarray, calls: list[tuple[int, int, int, int]] | None = None) -> Callable[..., torch.Tensor]:
    def read_region(top: int, left: int, height: int, width: int) -> torch.Tensor:
        if calls is not None:
            calls.append((top, left, height, width))
        return torch.from_numpy(picture[top : top + height, left : left + width])

    return read_region


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def two_cells(count: int = 2) -> Detections:
    """A cell of class 1 and one of class 3 of a lower score, which overlap."""
    boxes = torch.tensor([[4.0, 4.0, 20.0, 24.0], [10.0, 8.0, 40.0, 30.0]])[:count]
    return Detections(
        boxes,
        torch.tensor([0.9, 0.8])[:count],
        torch.tensor([1, 3])[:count],
        torch.ones(count, 28, 28),
        (48, 64),
    )
