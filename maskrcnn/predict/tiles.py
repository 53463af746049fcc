"""Division of large pictures into overlapping tiles, and merging of the tiles' detections.

A cell that is cut by a tile's border is complete in the neighbouring tile if it is smaller than the overlap. Of two
detections of the same cell, the one farther from the borders of its tile is kept, where the network saw more context.
(Keeping the higher score would be biased: the maximum of two scores exceeds a threshold more often than one score.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskrcnn.predict.overlaps import near_pairs, shared_pixels
from maskrcnn.structures import Detections

SAME_CELL = 0.5
"""Overlap of two masks above which they are the same cell, as in COCO's lowest threshold."""

STRIDE = 64
"""Stride of the pyramid's coarsest level in pixels: tiles start at multiples of it, so that their features and anchors
are at the same positions as those of the whole picture."""

CUT_MARGIN = 2.0
"""Distance in pixels from a tile's inner border within which a box counts as cut: predicted boxes are not exact."""


@dataclass(frozen=True)
class Tile:
    """A window of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def tile_picture(size: tuple[int, int], tile: int, overlap: int) -> list[Tile]:
    """Cover a picture of ``size`` (H, W) with tiles of at most ``tile`` x ``tile`` pixels, row by row.

    Neighbours overlap by at least ``overlap`` pixels, spread evenly. Tiles start at multiples of :data:`STRIDE` (of a
    smaller power of two if ``tile - overlap`` is smaller); the last ones of a row or column end at the border of the
    picture and may be smaller. Raises ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}; expected at least 0 and less than the tile, {tile}")
    rows, columns = (_starts(length, tile, overlap) for length in size)
    return [Tile(top, left, min(tile, size[0] - top), min(tile, size[1] - left)) for top in rows for left in columns]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    unit = min(STRIDE, 1 << (tile - overlap).bit_length() - 1)
    last, step = -(-(length - tile) // unit), (tile - overlap) // unit
    count = -(-last // step)
    return [-(-i * last // count) * unit for i in range(count + 1)]


def merge_tiles(tiles: Sequence[Tile], found: Sequence[Detections], size: tuple[int, int]) -> tuple[Detections, Tensor]:
    """Merge the detections of overlapping tiles to those of the whole picture, with each cell once.

    First, detections that are cut by an inner border of their tile (one that is not a border of the picture) are
    dropped if they are complete in another tile. Then, as in non-maximum suppression, duplicates from different tiles
    are removed, regardless of class: of two detections whose masks overlap by more than :data:`SAME_CELL`, the one
    farther from the inner borders of its tile is kept. The overlap is the intersection over union; if one is cut, over
    the area of its mask. Detections of the same tile are never duplicates.

    Args:
        tiles: the tiles of the picture.
        found: the detections of each tile, in pixels of the tile.
        size: (H, W) of the picture.

    Returns:
        The detections in pixels of the picture, highest score first, masks in half precision (they would take 3 KB per
        cell in float32); and bool [K], whether each of them is cut by an inner border, since it is larger than the
        overlap.
    """
    moved = [_to_picture(detections, tile, size) for tile, detections in zip(tiles, found, strict=True)]
    distances = [inner_distance(detections.boxes, tile, size) for tile, detections in zip(tiles, moved, strict=True)]
    keep = [torch.ones(len(detections), dtype=torch.bool) for detections in moved]
    neighbours = _neighbours(tiles)
    for i, j in [*neighbours, *((j, i) for i, j in neighbours)]:
        complete = _is_inside(moved[i].boxes, tiles[j]) & (inner_distance(moved[i].boxes, tiles[j], size) > CUT_MARGIN)
        keep[i] &= ~((distances[i] <= CUT_MARGIN) & complete)
    tile = np.repeat(np.arange(len(tiles)), [len(detections) for detections in moved])
    cells, distance, is_kept = _concatenate(moved, size), torch.cat(distances), torch.cat(keep).numpy()
    is_cut = distance <= CUT_MARGIN
    duplicates = np.concatenate([np.zeros((0, 2), np.int64), *near_pairs(cells.boxes.numpy())])
    duplicates = duplicates[(tile[duplicates[:, 0]] != tile[duplicates[:, 1]]) & is_kept[duplicates].all(axis=1)]
    duplicates = duplicates[_are_duplicates(cells, is_cut, duplicates)]
    order = np.lexsort((-cells.scores.numpy(), -distance.numpy()))
    kept = torch.from_numpy(_suppress(order, duplicates))
    kept = kept[torch.from_numpy(is_kept)[kept]]
    kept = kept[cells.scores[kept].argsort(descending=True, stable=True)]
    return cells.select(kept), is_cut[kept]


def _concatenate(parts: Sequence[Detections], size: tuple[int, int]) -> Detections:
    boxes, scores, labels, masks = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels", "masks")
    )
    return replace(parts[0], boxes=boxes, scores=scores, labels=labels, masks=masks, size=size)


def _to_picture(detections: Detections, tile: Tile, size: tuple[int, int]) -> Detections:
    """Move detections from pixels of a tile to pixels of the picture."""
    offset = detections.boxes.new_tensor([tile.left, tile.top] * 2)
    return replace(detections, boxes=detections.boxes + offset, masks=detections.masks.half(), size=size)


def inner_distance(boxes: Tensor, tile: Tile, size: tuple[int, int]) -> Tensor:
    """Distance in pixels from each box [K, 4] (in pixels of the picture) to the nearest border of the tile that is not
    a border of the picture, float [K]; infinite if there is none."""
    inner = [tile.left > 0, tile.top > 0, tile.left + tile.width < size[1], tile.top + tile.height < size[0]]
    return _border_distances(boxes, tile).masked_fill(~torch.tensor(inner), torch.inf).amin(dim=1)


def _is_inside(boxes: Tensor, tile: Tile) -> Tensor:
    """Whether each box is completely inside the tile, bool [K]."""
    return (_border_distances(boxes, tile) >= 0).all(dim=1)


def _border_distances(boxes: Tensor, tile: Tile) -> Tensor:
    """Distances in pixels from the tile's left, top, right and bottom border to each box, [K, 4]."""
    corners = boxes.new_tensor([tile.left, tile.top, tile.left + tile.width, tile.top + tile.height])
    return (boxes - corners) * boxes.new_tensor([1, 1, -1, -1])


def _neighbours(tiles: Sequence[Tile]) -> list[tuple[int, int]]:
    """Pairs of tiles that overlap. Tiles are on a grid, so only those of the same and the next rows are compared."""
    rows: dict[int, list[int]] = {}
    for index, tile in enumerate(tiles):
        rows.setdefault(tile.top, []).append(index)
    tops = sorted(rows)
    pairs = []
    for position, top in enumerate(tops):
        below = [t for t in tops[position + 1 :] if t < top + tiles[rows[top][0]].height]
        for column, index in enumerate(rows[top]):
            tile = tiles[index]
            others = [*rows[top][column + 1 :], *(other for t in below for other in rows[t])]
            pairs += [
                (index, other)
                for other in others
                if tiles[other].left < tile.left + tile.width and tile.left < tiles[other].left + tiles[other].width
            ]
    return pairs


def _are_duplicates(cells: Detections, cut: Tensor, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether the masks of each pair are the same cell, bool [P]: by their intersection over their union; if one is
    cut, over its area; if both are, over the smaller area."""
    intersection, areas = shared_pixels(cells, pairs)
    is_cut = cut.numpy()[pairs]
    union = areas.sum(axis=1) - intersection
    cut_area = np.where(is_cut, areas, np.iinfo(np.int64).max).min(axis=1)
    same: npt.NDArray[np.bool_] = intersection > SAME_CELL * np.where(is_cut.any(axis=1), cut_area, union)
    return same


def _suppress(order: npt.NDArray[np.int64], duplicates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Indices of the detections that are kept: of each pair in ``duplicates`` only the first in ``order``."""
    both = np.concatenate([duplicates, duplicates[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    bounds = np.searchsorted(both[:, 0], np.arange(len(order) + 1))
    alive = np.ones(len(order), bool)
    for index in order:
        if alive[index]:
            start, stop = bounds[index : index + 2]
            alive[both[start:stop, 1]] = False
    return np.flatnonzero(alive)
