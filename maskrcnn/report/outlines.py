"""Outlines of cells as compact SVG paths with small integers, a few dozen characters per cell, and their colours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskrcnn.structures.polygons import Ring, polygons
from maskrcnn.structures.rle import BATCH, cell_areas, cell_boxes

# Okabe & Ito's palette for colour-blind readers, those with most contrast on dark and pink pictures first.
COLORS = ((240, 228, 66), (0, 158, 255), (0, 220, 130), (255, 80, 60), (204, 121, 167), (86, 180, 233), (230, 159, 0))

TOLERANCE = 1.0
"""Maximum deviation of a simplified outline in grid units; half a pixel if pixels are larger."""


def outline_paths(rles: Sequence[dict[str, Any]], scale: float) -> tuple[list[str], list[int]]:
    """The outline of every cell as an SVG path, and its area in pixels.

    Outlines go through the middles of pixels' edges, which cuts the corners of steps.

    Args:
        rles: COCO run lengths with text counts.
        scale: grid units per pixel of the picture; coordinates are whole units.

    Returns:
        For each cell ``M x y l dx dy ... z`` without unnecessary spaces, with one ring per part and hole (holes have
        the opposite direction, for SVG's nonzero rule). A cell smaller than a unit becomes the rectangle of its box;
        one without pixels an empty string.
    """
    rings: list[npt.NDArray[np.float64]] = []
    cells: list[int] = []  # index of the cell of each ring
    areas = cell_areas(rles).tolist()
    for start in range(0, len(rles), BATCH):
        part = rles[start : start + BATCH]
        for number, parts in enumerate(polygons(part), start=start):
            for corners in itertools.chain.from_iterable(parts):
                rings.append(_through_middles(corners) * scale)
                cells.append(number)
    paths = [""] * len(areas)
    for number, ring in zip(cells, simplify(rings, max(TOLERANCE, scale / 2)), strict=True):
        paths[number] += _path(ring)
    return [
        path or (_path(_rectangle(box, scale)) if area else "")
        for path, area, box in zip(paths, areas, cell_boxes(rles).tolist(), strict=True)
    ], areas


def _through_middles(ring: Ring) -> npt.NDArray[np.float64]:
    """The middles (y, x) of the pixel edges that a closed ring of corners (x, y) consists of, the last as the first."""
    steps = np.diff(ring, axis=0)
    lengths = np.abs(steps).sum(axis=1)
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 0.5
    middles = np.repeat(ring[:-1], lengths, axis=0) + np.repeat(np.sign(steps), lengths, axis=0) * place[:, None]
    return np.concatenate([middles, middles[:1]])[:, ::-1]


def simplify(rings: Sequence[npt.NDArray[np.float64]], tolerance: float) -> list[npt.NDArray[np.float64]]:
    """Simplify many closed rings at once with the algorithm of Douglas and Peucker (1973).

    Args:
        rings: float64 [N, 2] each, the last point repeats the first.
        tolerance: maximum distance of a removed point from the line that replaces it.
    """
    if not rings:
        return []
    points = np.concatenate(rings)
    ends = np.cumsum([len(ring) for ring in rings])
    kept = np.zeros(len(points), bool)
    kept[ends - 1] = kept[ends[:-1]] = kept[0] = True
    while True:
        corners = np.flatnonzero(kept)
        segment = np.cumsum(kept) - 1  # index of the corner at which the segment starts
        start = points[corners[segment]]
        chord = points[corners[np.minimum(segment + 1, len(corners) - 1)]] - start
        along = ((points - start) * chord).sum(1) / np.maximum((chord**2).sum(1), 1e-12)
        distance = np.hypot(*(points - start - np.clip(along, 0, 1)[:, None] * chord).T)
        distance[kept] = 0
        farthest = np.maximum.reduceat(distance, corners)[segment]
        added = np.flatnonzero((distance == farthest) & (distance > tolerance))
        if not len(added):
            return [ring[keep] for ring, keep in zip(rings, np.split(kept, ends[:-1]), strict=True)]
        kept[added[np.unique(segment[added], return_index=True)[1]]] = True


def _path(ring: npt.NDArray[np.float64]) -> str:
    """The SVG path of a closed ring [N, 2] of (y, x); "" if it has fewer than three corners in whole units."""
    corners = np.rint(ring[:-1, ::-1]).astype(int)
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(1)]
    if len(corners) < 3:
        return ""
    steps = " ".join(f"{x} {y}" for x, y in np.diff(corners, axis=0).tolist()).replace(" -", "-")
    return f"M{corners[0, 0]} {corners[0, 1]}l{steps}z"


def _rectangle(box: Sequence[int], scale: float) -> npt.NDArray[np.float64]:
    y, x = np.floor((box[0] * scale, box[1] * scale))
    bottom, right = max(np.ceil(box[2] * scale), y + 1), max(np.ceil(box[3] * scale), x + 1)
    return np.array([(y, x), (y, right), (bottom, right), (bottom, x), (y, x)])
