"""Cells as polygons: small integers in SVG's path language, a few dozen characters per cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours

from maskrcnn.structures.rle import cell_window

TOLERANCE = 1.0
"""Units of the grid by which a simplified outline may leave the true one; where pixels are larger, half a pixel."""


def outline_paths(rles: Sequence[dict[str, Any]], scale: float) -> tuple[list[str], list[int]]:
    """Every cell's outline as an SVG path, and its area in pixels.

    A mask is decoded in its own window only, so the size of the picture costs nothing.

    Args:
        rles: COCO run lengths with text counts.
        scale: units of the paths' grid per pixel of the picture; coordinates are whole units.

    Returns:
        For each cell ``M x y l dx dy ... z``, written without needless spaces and with a ring for each part and hole
        (holes turn the other way, for SVG's nonzero rule). A cell smaller than a unit becomes its window's rectangle;
        one without a pixel an empty text.
    """
    rings: list[npt.NDArray[np.float64]] = []
    cells: list[int] = []  # of which cell a ring is
    areas, boxes = [], []
    for number, rle in enumerate(rles):
        top, left, mask = cell_window(rle)
        areas.append(int(mask.sum()))
        boxes.append((top, left, *mask.shape))
        for ring in find_contours(np.pad(mask, 1).astype(np.float64), 0.5, fully_connected="high"):
            rings.append((ring - 0.5 + (top, left)) * scale)  # a padded pixel's centre, number i, lies at i - 1/2
            cells.append(number)
    paths = [""] * len(areas)
    for number, ring in zip(cells, simplify(rings, max(TOLERANCE, scale / 2)), strict=True):
        paths[number] += _path(ring)
    return [
        path or (_path(_rectangle(box, scale)) if area else "")
        for path, area, box in zip(paths, areas, boxes, strict=True)
    ], areas


def simplify(rings: Sequence[npt.NDArray[np.float64]], tolerance: float) -> list[npt.NDArray[np.float64]]:
    """Douglas and Peucker's algorithm (1973) on many closed rings at once.

    Args:
        rings: float64 [N, 2] each, the first point given again as the last.
        tolerance: a point is left out if it lies at most this far from the line that replaces it.
    """
    if not rings:
        return []
    points = np.concatenate(rings)
    ends = np.cumsum([len(ring) for ring in rings])
    kept = np.zeros(len(points), bool)
    kept[ends - 1] = kept[ends[:-1]] = kept[0] = True
    while True:
        corners = np.flatnonzero(kept)
        segment = np.cumsum(kept) - 1  # from which corner on
        start = points[corners[segment]]
        chord = points[corners[np.minimum(segment + 1, len(corners) - 1)]] - start
        along = ((points - start) * chord).sum(1) / np.maximum((chord**2).sum(1), 1e-12)
        away = np.hypot(*(points - start - np.clip(along, 0, 1)[:, None] * chord).T)
        away[kept] = 0
        farthest = np.maximum.reduceat(away, corners)[segment]
        added = np.flatnonzero((away == farthest) & (away > tolerance))
        if not len(added):
            return [ring[keep] for ring, keep in zip(rings, np.split(kept, ends[:-1]), strict=True)]
        kept[added[np.unique(segment[added], return_index=True)[1]]] = True


def _path(ring: npt.NDArray[np.float64]) -> str:
    """A closed ring [N, 2] of (y, x); an empty text if less than a triangle is left of it in whole units."""
    corners = np.rint(ring[:-1, ::-1]).astype(int)
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(1)]
    if len(corners) < 3:
        return ""
    steps = " ".join(f"{x} {y}" for x, y in np.diff(corners, axis=0).tolist()).replace(" -", "-")
    return f"M{corners[0, 0]} {corners[0, 1]}l{steps}z"


def _rectangle(box: tuple[int, ...], scale: float) -> npt.NDArray[np.float64]:
    top, left, height, width = box
    y, x = np.floor((top * scale, left * scale))
    bottom, right = max(np.ceil((top + height) * scale), y + 1), max(np.ceil((left + width) * scale), x + 1)
    return np.array([(y, x), (y, right), (bottom, right), (bottom, x), (y, x)])
