"""Large pictures: tiles that overlap, and one list of cells out of theirs.

A cell that a tile's border cuts is whole in the neighbour, as long as it is smaller than the overlap. Of two that are
the same cell stays the one that lies farther inside its tile, where the network saw more of what is around it. (The
one of the higher score would not do: the better of two guesses is above a threshold more often than one guess.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskrcnn.structures import Detections
from maskrcnn.structures.rle import cell_window

SAME_CELL = 0.5
"""Overlap of two masks from which they are one cell, as in COCO's lowest threshold."""

STRIDE = 64
"""Pixels between positions of the pyramid's coarsest level: tiles start at multiples of it, so that their features and
anchors lie where those of the whole picture lie."""

CUT_MARGIN = 2.0
"""Pixels from a tile's inner border within which a box counts as cut: boxes end about there, not exactly."""


@dataclass(frozen=True)
class Tile:
    """A window of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def tile_picture(size: tuple[int, int], tile: int, overlap: int) -> list[Tile]:
    """Windows of at most ``tile`` x ``tile`` pixels that cover a picture of ``size`` (H, W), row by row.

    Neighbours overlap by at least ``overlap`` pixels, spread evenly. Windows start at multiples of :data:`STRIDE` (of a
    smaller power of two where the tile less the overlap is smaller); the last ones of a row or column end with the
    picture and may be smaller.
    Raises ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}; expected 0 up to the tile's {tile} pixels")
    rows, columns = (_starts(length, tile, overlap) for length in size)
    return [Tile(top, left, min(tile, size[0] - top), min(tile, size[1] - left)) for top in rows for left in columns]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    unit = min(STRIDE, 1 << (tile - overlap).bit_length() - 1)
    last, step = -(-(length - tile) // unit), (tile - overlap) // unit
    count = -(-last // step)
    return [-(-i * last // count) * unit for i in range(count + 1)]


def merge_tiles(tiles: Sequence[Tile], found: Sequence[Detections], size: tuple[int, int]) -> tuple[Detections, int]:
    """One picture's cells from those of its tiles.

    What a tile's inner border cuts is dropped where another tile shows that place whole. Then two detections from
    different tiles, of whatever class, are one cell where their masks overlap by more than :data:`SAME_CELL`: by
    intersection over union, or over a mask that is cut. The one farther from its tile's inner borders stays, as in
    non-maximum suppression. What one tile says about two of its own cells stands.

    Args:
        tiles, found: the windows, and the detections of each in its own pixels.
        size: (H, W) of the picture.

    Returns:
        The cells in the picture's pixels, highest score first, masks in half precision (3 KB a cell in single); and how
        many of them are still cut by an inner border: cells larger than the overlap.
    """
    placed = [_placed(detections, tile, size) for tile, detections in zip(tiles, found, strict=True)]
    room = [inner_room(detections.boxes, tile, size) for tile, detections in zip(tiles, placed, strict=True)]
    stays = [torch.ones(len(detections), dtype=torch.bool) for detections in placed]
    neighbours = _neighbours(tiles)
    for i, j in [*neighbours, *((j, i) for i, j in neighbours)]:
        seen_whole = _lies_in(placed[i].boxes, tiles[j]) & (inner_room(placed[i].boxes, tiles[j], size) > CUT_MARGIN)
        stays[i] &= ~((room[i] <= CUT_MARGIN) & seen_whole)
    first = np.cumsum([0, *map(len, placed)])
    cells, rooms, stay = _joined(placed, size), torch.cat(room), torch.cat(stays).numpy()
    is_cut = rooms <= CUT_MARGIN
    pairs = [_close_pairs(cells, slice(*first[i : i + 2]), slice(*first[j : j + 2])) for i, j in neighbours]
    same = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    same = same[stay[same].all(axis=1)]
    same = same[_are_same(cells, is_cut, same)]
    order = np.lexsort((-cells.scores.numpy(), -rooms.numpy()))
    kept = torch.from_numpy(_suppress(order, same))
    kept = kept[torch.from_numpy(stay)[kept]]
    kept = kept[cells.scores[kept].argsort(descending=True, stable=True)]
    return cells.select(kept), int(is_cut[kept].sum())


def _joined(parts: Sequence[Detections], size: tuple[int, int]) -> Detections:
    boxes, scores, labels, masks = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels", "masks")
    )
    return replace(parts[0], boxes=boxes, scores=scores, labels=labels, masks=masks, size=size)


def _placed(detections: Detections, tile: Tile, size: tuple[int, int]) -> Detections:
    offset = detections.boxes.new_tensor([tile.left, tile.top] * 2)
    return replace(detections, boxes=detections.boxes + offset, masks=detections.masks.half(), size=size)


def inner_room(boxes: Tensor, tile: Tile, size: tuple[int, int]) -> Tensor:
    """float [K]: pixels from the box [K, 4] (in the picture's) to the nearest border of the tile that is none of the
    picture's; infinite where there is none."""
    inner = [tile.left > 0, tile.top > 0, tile.left + tile.width < size[1], tile.top + tile.height < size[0]]
    return _room(boxes, tile).masked_fill(~torch.tensor(inner), torch.inf).amin(dim=1)


def _lies_in(boxes: Tensor, tile: Tile) -> Tensor:
    """bool [K]: no part of the box is outside the tile."""
    return (_room(boxes, tile) >= 0).all(dim=1)


def _room(boxes: Tensor, tile: Tile) -> Tensor:
    """Pixels from the tile's left, top, right and bottom border to the box."""
    corners = boxes.new_tensor([tile.left, tile.top, tile.left + tile.width, tile.top + tile.height])
    return (boxes - corners) * boxes.new_tensor([1, 1, -1, -1])


def _neighbours(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Pairs of tiles that share pixels. Tiles lie on a grid, so each looks at those of its own and the next rows."""
    rows: dict[int, list[int]] = {}
    for index, tile in enumerate(tiles):
        rows.setdefault(tile.top, []).append(index)
    tops = sorted(rows)
    pairs = []
    for place, top in enumerate(tops):
        below = [t for t in tops[place + 1 :] if t < top + tiles[rows[top][0]].height]
        for column, index in enumerate(rows[top]):
            tile = tiles[index]
            others = [*rows[top][column + 1 :], *(other for t in below for other in rows[t])]
            pairs += [
                (index, other)
                for other in others
                if tiles[other].left < tile.left + tile.width and tile.left < tiles[other].left + tiles[other].width
            ]
    return pairs


def _close_pairs(cells: Detections, ours: slice, theirs: slice) -> npt.NDArray[np.int64]:
    """int64 [P, 2]: detections of two tiles whose boxes share enough for their masks to be the same cell's."""
    a, b = cells.boxes[ours], cells.boxes[theirs]
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.int64)
    sides = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0)
    smaller = torch.minimum((a[:, 2:] - a[:, :2]).prod(1)[:, None], (b[:, 2:] - b[:, :2]).prod(1))
    return torch.nonzero(sides.prod(2) > 0.25 * smaller).numpy() + np.array([ours.start, theirs.start])


def _are_same(cells: Detections, cut: Tensor, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """bool [P]: whether the masks of each pair are one cell."""
    involved = np.unique(pairs)  # only cells near a seam get masks here
    rles = cells.select(torch.from_numpy(involved)).to_rle()
    windows = dict(zip(involved.tolist(), map(cell_window, rles), strict=True))
    return np.array(
        [_overlap(windows[i], windows[j], bool(cut[i]), bool(cut[j])) > SAME_CELL for i, j in pairs.tolist()], bool
    )


Window = tuple[int, int, npt.NDArray[np.bool_]]


def _overlap(a: Window, b: Window, a_is_cut: bool, b_is_cut: bool) -> float:
    """Intersection of two masks over their union; over the one that is cut, or the smaller one of two that are."""
    (top_a, left_a, mask_a), (top_b, left_b, mask_b) = a, b
    top, left = max(top_a, top_b), max(left_a, left_b)
    bottom = min(top_a + mask_a.shape[0], top_b + mask_b.shape[0])
    right = min(left_a + mask_a.shape[1], left_b + mask_b.shape[1])
    if bottom <= top or right <= left:
        return 0.0
    part_a = mask_a[top - top_a : bottom - top_a, left - left_a : right - left_a]
    part_b = mask_b[top - top_b : bottom - top_b, left - left_b : right - left_b]
    shared, areas = np.count_nonzero(part_a & part_b), (np.count_nonzero(mask_a), np.count_nonzero(mask_b))
    cut = [area for area, is_cut in zip(areas, (a_is_cut, b_is_cut), strict=True) if is_cut]
    whole = min(cut) if cut else sum(areas) - shared
    return shared / whole if whole else 0.0


def _suppress(order: npt.NDArray[np.int64], same: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices of the detections that stay, when of each pair in ``same`` only the first in ``order`` does."""
    both = np.concatenate([same, same[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    bounds = np.searchsorted(both[:, 0], np.arange(len(order) + 1))
    alive = np.ones(len(order), bool)
    for index in order:
        if alive[index]:
            start, stop = bounds[index : index + 2]
            alive[both[start:stop, 1]] = False
    return np.flatnonzero(alive)
