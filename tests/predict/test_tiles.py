"""Tiles and the merging of their cells, against pictures whose cells are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn.predict.tiles import Tile, _neighbours, merge_tiles, tile_picture
from maskrcnn.predict.windows import equal_windows
from maskrcnn.structures import Detections
from maskrcnn.structures.rle import cell_window


@settings(deadline=None)  # many small tiles take their time
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(32, 1024), st.floats(0, 0.75))
def test_tiles_cover_the_picture_and_overlap(height: int, width: int, tile: int, share: float) -> None:
    overlap = int(share * tile)
    tiles = tile_picture((height, width), tile, overlap)
    unit = min(64, 1 << (tile - overlap).bit_length() - 1)
    for length, spans in (
        (height, sorted({(t.top, t.height) for t in tiles})),
        (width, sorted({(t.left, t.width) for t in tiles})),
    ):
        assert spans[0][0] == 0
        assert sum(spans[-1]) == length
        assert all(start % unit == 0 for start, _ in spans)
        assert all(side == min(tile, length) for _, side in spans[:-1])
        assert min(tile, length) - unit < spans[-1][1] <= tile
        assert all(a < b <= a + tile - overlap for (a, _), (b, _) in pairwise(spans))
    assert len(tiles) == len({(t.top, t.left) for t in tiles})


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(16, 512))
def test_windows_of_one_size_cover_the_picture(height: int, width: int, side: int) -> None:
    windows = equal_windows((height, width), side)
    (h, w), *others = {(window.height, window.width) for window in windows}
    assert not others
    assert max(h, w) <= max(32, side)
    assert h in (height, h // 32 * 32)
    assert w in (width, w // 32 * 32)
    seen = np.zeros((height, width), bool)
    for window in windows:
        assert window.top + h <= height
        assert window.left + w <= width
        seen[window.top : window.top + h, window.left : window.left + w] = True
    assert seen.all()


@settings(deadline=None)
@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(32, 600), st.floats(0, 0.75))
def test_all_tiles_that_share_pixels_are_neighbours(height: int, width: int, tile: int, share: float) -> None:
    tiles = tile_picture((height, width), tile, int(share * tile))[:400]
    edges = np.array([(t.top, t.left, t.top + t.height, t.left + t.width) for t in tiles])
    first, last = (np.maximum, np.minimum)
    meet = (first(edges[:, None, :2], edges[:, :2]) < last(edges[:, None, 2:], edges[:, 2:])).all(axis=2)
    expected = {(i, j) for i, j in np.argwhere(meet).tolist() if i < j}
    assert {tuple(sorted(pair)) for pair in _neighbours(tiles)} == expected


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        tile_picture((100, 100), 64, 64)


def discs(count: int, size: int, seed: int, radius: tuple[float, float] = (6, 18)) -> Detections:
    """Cells of random places and radii that do not touch, as a network would see them."""
    rng = np.random.default_rng(seed)
    boxes: list[list[float]] = []
    while len(boxes) < count:
        r = rng.uniform(*radius)
        x, y = rng.uniform(r, size - r, 2)
        if all(np.hypot(x - (b[0] + b[2]) / 2, y - (b[1] + b[3]) / 2) > r + (b[2] - b[0]) / 2 + 2 for b in boxes):
            boxes.append([x - r, y - r, x + r, y + r])
    grid = (torch.arange(28) + 0.5) / 14 - 1
    disc = torch.sigmoid(20 * (1 - (grid**2 + grid[:, None] ** 2).sqrt()))
    scores = torch.from_numpy(rng.uniform(0.5, 1, count)).float().sort(descending=True).values
    labels = torch.from_numpy(rng.integers(1, 3, count))
    return Detections(torch.tensor(boxes), scores, labels, disc.repeat(count, 1, 1), (size, size))


def seen_in(tile: Tile, cells: Detections, seed: int) -> Detections:
    """What a network that sees the tile alone reports: cells shifted a bit, those at a border cut, other scores."""
    offset = torch.tensor([tile.left, tile.top, tile.left, tile.top])
    side = torch.tensor([tile.width, tile.height] * 2)
    boxes = cells.boxes - offset
    cut = boxes.clamp(min=0).minimum(side)
    keep = ((cut[:, 2:] - cut[:, :2]) > 1).all(dim=1)
    generator = torch.Generator().manual_seed(seed)
    cut = cut + 0.4 * torch.rand(cut.shape, generator=generator) - 0.2
    scores = cells.scores * (0.9 + 0.1 * torch.rand(len(cells), generator=generator))
    masks = []
    for box, part, mask in zip(boxes, cut, cells.masks, strict=True):  # the visible part of the disc, over the cut box
        x = (part[0] + (torch.arange(28) + 0.5) / 28 * (part[2] - part[0]) - box[0]) / (box[2] - box[0]) * 28
        y = (part[1] + (torch.arange(28) + 0.5) / 28 * (part[3] - part[1]) - box[1]) / (box[3] - box[1]) * 28
        masks.append(mask[y.long().clamp(0, 27)][:, x.long().clamp(0, 27)])
    order = torch.nonzero(keep).squeeze(1)[scores[keep].argsort(descending=True)]
    found = Detections(cut, scores, cells.labels, torch.stack(masks), (tile.height, tile.width))
    return found.select(order)


def iou(a: dict, b: dict) -> float:
    from pycocotools import mask as coco_mask

    return float(coco_mask.iou([a], [b], [0])[0, 0])


@pytest.mark.parametrize("tile", [100, 150, 256])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_cell_is_cut_or_counted_twice(tile: int, seed: int) -> None:
    cells = discs(120, 400, seed)
    tiles = tile_picture(cells.size, tile, 40)  # more than the largest diameter
    merged, cut = merge_tiles(tiles, [seen_in(t, cells, i) for i, t in enumerate(tiles)], cells.size)
    assert not cut.any()
    assert len(merged) == len(cells)
    assert (merged.scores[1:] <= merged.scores[:-1]).all()
    truth, found = cells.to_rle(), merged.to_rle()
    centers = (cells.boxes[:, :2] + cells.boxes[:, 2:]) / 2
    for box, label, rle in zip(merged.boxes, merged.labels, found, strict=True):
        nearest = int((centers - (box[:2] + box[2:]) / 2).norm(dim=1).argmin())
        assert label == cells.labels[nearest]
        assert iou(rle, truth[nearest]) > 0.75  # boxes are off by up to 0.2 pixels


def test_a_cell_larger_than_the_overlap_is_counted_and_said() -> None:
    cells = discs(1, 300, 0, radius=(60, 61))
    side = float(cells.boxes[0, 2] - cells.boxes[0, 0])
    cells = Detections(
        torch.tensor([[90, 90, 90 + side, 90 + side]]), cells.scores, cells.labels, cells.masks, (300, 300)
    )
    tiles = tile_picture(cells.size, 160, 20)
    merged, cut = merge_tiles(tiles, [seen_in(t, cells, i) for i, t in enumerate(tiles)], cells.size)
    assert int(cut.sum()) == len(merged) > 0


def test_touching_cells_whose_boxes_overlap_are_both_kept() -> None:
    """Two halves of one square along its diagonal: the boxes are the same, the masks share nothing."""
    lower = torch.tril(torch.ones(28, 28))
    tiles = [Tile(0, 0, 100, 100), Tile(0, 50, 100, 100)]
    box = torch.tensor([[60.0, 30.0, 90.0, 60.0]])

    def one(shift: float, mask: torch.Tensor, score: float) -> Detections:
        return Detections(
            box - torch.tensor([shift, 0, shift, 0]), torch.tensor([score]), torch.tensor([1]), mask[None], (100, 100)
        )

    merged, _ = merge_tiles(tiles, [one(0, lower, 0.9), one(50, 1 - lower, 0.8)], (100, 150))
    assert len(merged) == 2
    merged, _ = merge_tiles(tiles, [one(0, lower, 0.8), one(50, lower, 0.9)], (100, 150))
    assert len(merged) == 1


def one_cell(box: list[float], tile: Tile, score: float, label: int = 1) -> Detections:
    """A cell that fills ``box`` (in the picture's pixels), as ``tile`` reports it."""
    own = torch.tensor([box]) - torch.tensor([tile.left, tile.top] * 2)
    size = (tile.height, tile.width)
    return Detections(own, torch.tensor([score]), torch.tensor([label]), torch.ones(1, 28, 28), size)


def test_of_two_reports_of_a_cell_the_one_with_more_around_it_stays() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(0, 50, 100, 100)]
    for x, seen_better in ((55.0, 0), (80.0, 1)):
        box = [x, 40.0, x + 15, 60.0]
        for scores in ((0.9, 0.4), (0.4, 0.9)):
            found = [one_cell(box, tile, score) for tile, score in zip(tiles, scores, strict=True)]
            merged, _ = merge_tiles(tiles, found, (100, 150))
            assert merged.scores.tolist() == pytest.approx([scores[seen_better]])


def test_a_cell_that_two_tiles_call_different_classes_is_one() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(0, 50, 100, 100)]
    box = [60.0, 40.0, 75.0, 60.0]
    merged, _ = merge_tiles(
        tiles, [one_cell(box, t, 0.9, label) for t, label in zip(tiles, (1, 2), strict=True)], (100, 150)
    )
    assert merged.labels.tolist() == [1]


def test_a_large_cell_that_is_cut_does_not_give_way_to_a_small_one_inside_it() -> None:
    tiles = [Tile(0, 0, 100, 100), Tile(0, 50, 100, 100)]
    large, small = one_cell([10.0, 10.0, 99.0, 90.0], tiles[0], 0.9), one_cell([60.0, 40.0, 75.0, 60.0], tiles[1], 0.9)
    merged, cut = merge_tiles(tiles, [large, small], (100, 150))
    assert (len(merged), int(cut.sum())) == (2, 1)


def test_detections_of_one_tile_are_never_duplicates() -> None:
    cells = discs(1, 100, 0)
    twice = Detections(
        *(getattr(cells, n).repeat_interleave(2, 0) for n in ("boxes", "scores", "labels", "masks")), (100, 100)
    )
    merged, _ = merge_tiles([Tile(0, 0, 100, 100)], [twice], (100, 100))
    assert len(merged) == 2


def test_no_cells_at_all() -> None:
    nothing = discs(1, 100, 0).select(torch.zeros(0, dtype=torch.int64))
    tiles = tile_picture((100, 180), 100, 20)
    merged, cut = merge_tiles(tiles, [nothing] * len(tiles), (100, 180))
    assert len(merged) == len(cut) == 0
    assert merged.size == (100, 180)


def test_windows_of_merged_cells_lie_in_the_picture() -> None:
    cells = discs(30, 400, 5)
    tiles = tile_picture(cells.size, 150, 50)
    merged, _ = merge_tiles(tiles, [seen_in(t, cells, i) for i, t in enumerate(tiles)], cells.size)
    assert merged.masks.dtype == torch.float16
    for rle in merged.to_rle():
        top, left, mask = cell_window(rle)
        assert mask.any()
        assert top >= 0 <= left
