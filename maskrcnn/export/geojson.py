"""Writes the outlines of cells as GeoJSON for QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours, label

from maskrcnn.export.labels import classes_of
from maskrcnn.export.names import printable
from maskrcnn.export.overlay import COLORS
from maskrcnn.files import atomic_write
from maskrcnn.structures import Detections
from maskrcnn.structures.rle import cell_window

Point = tuple[int, int]
Ring = list[Point]


def write_geojson(
    path: Path,
    detections: Detections,
    class_names: Sequence[str],
    colors: Sequence[tuple[int, int, int]] = COLORS,
) -> None:
    """Write a FeatureCollection (RFC 7946), one feature per cell, with outlines in pixels of the picture.

    The properties are those that QuPath 0.4 or newer reads: ``objectType`` "detection", ``classification`` with name
    and colour, ``name`` (the cell's id) and the measurement "score". The id, also that of the feature, is i + 1 for
    detection i, as in the label image and the table; cells may overlap. Cells without pixels get no feature; the ids of
    the others do not change.

    Args:
        path: the file; replaced when the new one is complete.
        detections: the cells of one picture, on any device.
        class_names: names of classes 1..K.
        colors: RGB, 0..255, of classes 1, 2, ...; repeated if there are more classes.

    Raises:
        InputError: the file cannot be written.
        ValueError: a detection's class is not in 1..K.
    """
    classes = classes_of(detections, len(class_names))
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for index, geometry in _geometries(detections):
            number = classes[index] - 1
            feature = {
                "type": "Feature",
                "id": index + 1,
                "geometry": geometry,
                "properties": {
                    "objectType": "detection",
                    "name": str(index + 1),
                    "classification": {
                        "name": printable(class_names[number]),
                        "color": list(colors[number % len(colors)]),
                    },
                    "measurements": {"score": round(float(detections.scores[index]), 6)},
                },
            }
            file.write(separator + json.dumps(feature))
            separator = ",\n"
        file.write("\n]}\n")


def _geometries(detections: Detections) -> Iterator[tuple[int, dict[str, Any]]]:
    """Index and geometry of each cell that has pixels."""
    for index, rle in enumerate(detections.to_rle()):
        parts = polygons(*cell_window(rle))
        if len(parts) == 1:
            yield index, {"type": "Polygon", "coordinates": parts[0]}
        elif parts:
            yield index, {"type": "MultiPolygon", "coordinates": parts}


def polygons(top: int, left: int, mask: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """Trace the outlines of a mask along the edges of its pixels, so that they enclose exactly these pixels.

    Pixels that share an edge form a polygon; parts that only touch at a corner are separate. Rings are simple (no point
    occurs twice) and valid in the sense of OGC: a hole may touch the outline or another hole in points only.

    Args:
        top, left: row and column of the mask's first pixel in the picture.
        mask: bool [h, w].

    Returns:
        The rings of each polygon, the outline first, then its holes. A ring is a list of corners (x, y), integers since
        pixel i covers [i, i+1); the last point repeats the first. By the right-hand rule of RFC 7946 the outline has a
        positive area in (x, y), a hole a negative one (on a screen, where y points down, the outline is clockwise).
    """
    padded = np.pad(mask, 1)
    components = label(padded, connectivity=1)
    parts: dict[int, list[Ring]] = {}
    # "low": where two pixels of the cell touch only at a corner, they are not connected
    for contour in find_contours(padded.astype(np.float64), 0.5, fully_connected="low", positive_orientation="low"):
        for ring in _simple_rings(_corners(contour)):
            x, y = _pixel_on_the_left(ring)
            rings = parts.setdefault(int(components[y + 1, x + 1]), [])
            is_outline = _twice_the_area(ring) > 0
            rings.insert(0 if is_outline else len(rings), [(x + left, y + top) for x, y in (*ring, ring[0])])
    return list(parts.values())


def _corners(contour: npt.NDArray[np.float64]) -> Ring:
    """The corners, in order, of the pixel edges that a contour at level 0.5 follows.

    Each point of the contour is the midpoint of a pixel edge of the outline, in coordinates (row, column) of the padded
    mask's pixel centres. Consecutive edges share a grid point: on each axis, its coordinate is that of the midpoint
    that is between two centres, or the mean of both.
    """
    twice = np.rint(2 * contour).astype(np.int64)  # odd between two centres
    before, after = twice[:-1], twice[1:]
    grid = np.where(before % 2 == 1, before, np.where(after % 2 == 1, after, (before + after) // 2))
    grid = (grid - 1) // 2  # half a pixel from centre to edge, and the padding
    turns = (np.roll(grid, -1, axis=0) - grid != grid - np.roll(grid, 1, axis=0)).any(axis=1)
    return [(x, y) for y, x in grid[turns].tolist()]


def _simple_rings(ring: Ring) -> list[Ring]:
    """Split a ring where it returns to an earlier point: a hole that touches the outline becomes a separate ring."""
    if len(set(ring)) == len(ring):
        return [ring]
    rings: list[Ring] = []
    path: Ring = []
    for point in ring:
        if point in path:
            start = path.index(point)
            rings.append(path[start:])
            del path[start:]
        path.append(point)
    return [*rings, path]


def _pixel_on_the_left(ring: Ring) -> Point:
    """The cell's pixel (x, y) at the first edge of a ring; it is to the left of the edge, as RFC 7946 requires."""
    (x, y), (next_x, next_y) = ring[:2]
    dx, dy = np.sign(next_x - x), np.sign(next_y - y)
    return int(x + (dx - dy - 1) // 2), int(y + (dx + dy - 1) // 2)


def _twice_the_area(ring: Ring) -> int:
    """Twice the signed area of a ring by the shoelace formula, positive if it turns from x to y."""
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(ring, [*ring[1:], ring[0]], strict=True))
