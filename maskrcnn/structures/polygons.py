"""Outlines of cells along the edges of their pixels, traced from run lengths for many cells at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from skimage.measure import label

from maskrcnn.structures.rle import Ints, cell_window, column_runs

Ring = Ints
"""Corners (x, y) of a closed ring, int64 [N, 2]; the last repeats the first."""


def polygons(rles: Sequence[dict[str, Any]]) -> list[list[list[Ring]]]:
    """The polygons of cells of one picture: one for each part that is connected by the sides of pixels.

    Args:
        rles: COCO run lengths. Thousands of cells at once are fastest, but not a slide's (see :func:`column_runs`).

    Returns:
        For each cell its parts; each part is its outline followed by its holes, each a closed ring of corners (x, y),
        which are integers since pixel i covers [i, i+1). By the right-hand rule of RFC 7946 the outline has a positive
        area in (x, y), a hole a negative one (on a screen, where y points down, the outline is clockwise). No ring
        visits a point twice, so that the polygons are valid (OGC Simple Features, 6.1.11).
    """
    outlines: list[list[Ring]] = [[] for _ in rles]
    holes: list[list[Ring]] = [[] for _ in rles]
    entangled: set[int] = set()
    for cell, ring, is_outline, visits_a_point_twice in _rings(rles):
        (outlines if is_outline else holes)[cell].append(ring)
        if visits_a_point_twice:
            entangled.add(cell)
    found = []
    for cell, rle in enumerate(rles):
        if cell in entangled or (holes[cell] and len(outlines[cell]) > 1):
            found.append(_sorted_into_parts(rle, [*outlines[cell], *holes[cell]]))
        elif holes[cell]:
            found.append([[*outlines[cell], *holes[cell]]])
        else:
            found.append([[ring] for ring in outlines[cell]])
    return found


def _rings(rles: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Ring, bool, bool]]:
    """The closed rings of all cells: cell, corners, whether it is an outline, and whether it may visit a point twice.

    Corners on a vertical line, in order, are the ends of the vertical edges on it, by twos; likewise on a horizontal
    line. A ring therefore alternates between the partners of each corner on both lines.
    """
    if not rles:
        return
    cell, x, y, across, is_start = _corners(rles)
    if not len(cell):
        return
    down = np.arange(len(cell)) ^ 1  # the order is that of the vertical lines
    follow = down[across].tolist()
    order: list[int] = []  # of those corners of a ring at which horizontal edges start, ring after ring
    ends = []
    for corner in np.flatnonzero(is_start).tolist():
        if follow[corner] < 0:  # is in an earlier ring
            continue
        while follow[corner] >= 0:
            order.append(corner)
            follow[corner], corner = -1, follow[corner]
        ends.append(len(order))
    corners = np.stack([np.array(order), across[order]], axis=1).ravel()
    first = 2 * np.array([0, *ends[:-1]])
    # Green's theorem: the area is the sum of -y dx over the horizontal edges
    twice = np.add.reduceat((y * (np.where(is_start, x - x[across], 0)))[corners], first)
    points = np.stack([x, y], axis=1)
    same = (points[1:] == points[:-1]).all(axis=1) & (cell[1:] == cell[:-1])
    is_double = np.append(same, False) | np.append(False, same)
    doubles = np.logical_or.reduceat(is_double[corners], first)
    stops = np.append(first[1:], len(corners))
    closed = points[np.insert(corners, stops, corners[first])]
    extra = np.arange(len(first))  # each ring before has one more point now
    rows = (values.tolist() for values in (cell[corners[first]], first + extra, stops + extra + 1, twice > 0, doubles))
    for number, start, stop, is_outline, is_doubtful in zip(*rows, strict=True):
        yield number, closed[start:stop], is_outline, is_doubtful


def _corners(rles: Sequence[dict[str, Any]]) -> tuple[Ints, ...]:
    """Corners of all outlines, ordered by cell, x and y.

    A run of pixels in a column has four corners. Where the run beside it begins (or ends) in the same row, both have
    one there, which cancel: the horizontal edge goes on. Where one begins and the other ends, the pixels touch at the
    corner alone, and both stay: first the one that ends, so that the vertical edge above it is its own.

    Returns:
        cell, x, y, the index of the corner at the other end of the horizontal edge, and whether that edge starts here
        if the cell is on its right hand (where y points down).
    """
    cell, column, begin, end = column_runs(rles)
    height, width = rles[0]["size"]
    cell = np.tile(cell, 4)
    x = np.concatenate([column, column, column + 1, column + 1])
    y = np.concatenate([begin, end, begin, end])
    is_top = np.tile(np.repeat([1, 0], len(column)), 2)
    is_left = np.repeat([1, 0], 2 * len(column))  # the corner is on the left of its run, and its edge goes to the right
    key = ((cell * (width + 1) + x) * (height + 1) + y) * 2 + is_top
    order = np.argsort(key)
    key = key[order]
    kept = order[(np.diff(key, prepend=-1) != 0) & (np.diff(key, append=-1) != 0)]
    cell, x, y, is_top, is_left = (values[kept] for values in (cell, x, y, is_top, is_left))
    lines = np.argsort(((cell * (height + 1) + y) * (width + 1) + x) * 2 + is_left)
    across = np.empty_like(lines)
    across[lines[0::2]], across[lines[1::2]] = lines[1::2], lines[0::2]
    is_start = np.empty(len(lines), bool)
    is_start[lines[0::2]] = is_top[lines[0::2]] == 1
    is_start[lines[1::2]] = is_top[lines[1::2]] == 0
    return cell, x, y, across, is_start


def _sorted_into_parts(rle: dict[str, Any], rings: Sequence[Ring]) -> list[list[Ring]]:
    """The parts of a cell whose outlines and holes are not obvious: split where rings touch themselves, each hole with
    the outline of the pixels that it is in."""
    top, left, mask = cell_window(rle)
    components = label(np.pad(mask, 1), connectivity=1)
    parts: dict[int, list[Ring]] = {}
    for ring in (simple for whole in rings for simple in _simple_rings(whole)):
        x, y = _pixel_on_the_right(ring)
        part = parts.setdefault(int(components[y - top + 1, x - left + 1]), [])
        part.insert(0 if _twice_the_area(ring) > 0 else len(part), ring)
    return list(parts.values())


def _simple_rings(ring: Ring) -> Iterator[Ring]:
    """Split a ring where it returns to an earlier point: a hole that touches the outline becomes a ring."""
    path: list[list[int]] = []
    for point in ring.tolist():
        if point in path:
            start = path.index(point)
            yield np.array([*path[start:], point])
            del path[start:]
        path.append(point)


def _pixel_on_the_right(ring: Ring) -> tuple[int, int]:
    """The cell's pixel (x, y) at the first edge of a ring, on its right hand where y points down."""
    x, y = ring[0].tolist()
    dx, dy = np.sign(ring[1] - ring[0]).tolist()
    return x + (dx - dy - 1) // 2, y + (dx + dy - 1) // 2


def _twice_the_area(ring: Ring) -> int:
    """Twice the signed area of a ring by the shoelace formula, positive if it turns from x to y."""
    x, y = ring.T
    return int((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
