"""Run lengths to label images, compared with pycocotools' full-size masks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.ops import masks_to_rle
from maskrcnn.structures import rle as rle_module
from maskrcnn.structures.rle import (
    cell_boxes,
    cell_window,
    cell_windows,
    column_runs,
    label_image,
    label_planes,
    pixels,
    run_lengths,
)


def _random_masks(seed: int, count: int = 6) -> np.ndarray:
    """Overlapping discs and specks, some without a pixel: bool [count, H, W]."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    y, x = np.mgrid[:height, :width]
    masks = []
    for _ in range(count):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, 15)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        masks.append(disc if rng.random() < 0.7 else rng.random((height, width)) < rng.choice([0, 0.3, 1]))
    return np.array(masks)


def _encode(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


@given(st.integers(0, 10_000))
def test_pixels_are_those_of_the_decoded_mask(seed: int) -> None:
    for mask in _random_masks(seed):
        rle = _encode(mask)
        assert run_lengths(rle["counts"]).sum() == mask.size
        assert pixels(rle).tolist() == np.flatnonzero(mask.T.reshape(-1)).tolist()
        assert pixels({**rle, "counts": rle["counts"].decode()}).tolist() == pixels(rle).tolist()


@given(st.lists(st.integers(0, 2_000_000), min_size=1, max_size=12))
def test_long_runs_survive_the_text(lengths: list[int]) -> None:
    """Pycocotools writes the text of the runs; chains of up to five characters, of both signs."""
    rle = coco_mask.frPyObjects({"size": [1, sum(lengths)], "counts": lengths}, 1, sum(lengths))
    assert run_lengths(rle["counts"]).tolist() == lengths


@pytest.mark.parametrize("left", [1_000, 20_000, 100_000])
def test_a_cell_of_a_slide(left: int) -> None:
    """The background before it takes more than 32 or 34 bits, too many for pycocotools."""
    height, width = 220_696, 109_240
    boxes = torch.tensor([[left, 40, left + 2, 43]]).float()
    (rle,) = masks_to_rle(torch.ones(1, 28, 28), boxes, (height, width))
    rest = (width - left - 2) * height + height - 43
    assert run_lengths(rle["counts"]).tolist() == [left * height + 40, 3, height - 3, 3, rest]
    assert cell_boxes([rle]).tolist() == [[40, left, 43, left + 2]]


@given(st.integers(0, 10_000))
def test_the_later_cell_covers_the_earlier(seed: int) -> None:
    masks = _random_masks(seed)
    expected = np.zeros(masks.shape[1:], int)
    for value, mask in enumerate(masks, start=1):
        expected[mask] = value
    image = label_image([_encode(mask) for mask in masks], masks.shape[1:])
    assert image.dtype == np.int32
    np.testing.assert_array_equal(image, expected)


@given(st.integers(0, 10_000))
def test_planes_hold_every_cell_whole(seed: int) -> None:
    masks = _random_masks(seed)
    planes = label_planes([_encode(mask) for mask in masks], masks.shape[1:])
    assert planes.shape[1:] == masks.shape[1:]
    for value, mask in enumerate(masks, start=1):
        np.testing.assert_array_equal((planes == value).any(axis=0), mask)
        assert ((planes == value).any(axis=(1, 2))).sum() <= 1


def test_no_cells_no_planes() -> None:
    assert label_planes([], (3, 5)).shape == (0, 3, 5)
    assert label_image([], (3, 5)).tolist() == np.zeros((3, 5)).tolist()


@pytest.mark.parametrize("size", [(1, 1), (7, 3)])
def test_a_cell_that_fills_the_picture(size: tuple[int, int]) -> None:
    assert (label_image([_encode(np.ones(size))], size) == 1).all()


@given(st.integers(0, 10_000))
def test_windows_are_tight_and_hold_the_pixels(seed: int) -> None:
    masks = _random_masks(seed)
    rles = [_encode(mask) for mask in masks]
    boxes = cell_boxes(rles)
    assert boxes.shape == (len(masks), 4)
    for mask, rle, box in zip(masks, rles, boxes.tolist(), strict=True):
        top, left, window = cell_window(rle)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            assert (top, left, window.shape, box) == (0, 0, (0, 0), [0, 0, 0, 0])
            continue
        assert box == [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1] == [top, left, *box[2:]]
        assert window.dtype == bool
        np.testing.assert_array_equal(window, mask[box[0] : box[2], box[1] : box[3]])


@given(st.integers(0, 10_000))
def test_pixels_of_pairs_of_cells(seed: int) -> None:
    masks = _random_masks(seed)
    windows = cell_windows([_encode(mask) for mask in masks])
    flat = np.array([mask.ravel() for mask in masks], np.int64).reshape(len(masks), -1)
    assert windows.areas.tolist() == flat.sum(axis=1).tolist()
    pairs = np.stack(np.meshgrid(np.arange(len(masks)), np.arange(len(masks))), axis=-1).reshape(-1, 2)
    assert windows.intersections(pairs).tolist() == (flat @ flat.T)[pairs[:, 0], pairs[:, 1]].tolist()


def test_more_cells_than_are_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rles = [
        _encode(mask) for seed in range(5) for mask in _random_masks(seed) if mask.shape == _random_masks(0)[0].shape
    ]
    whole = cell_windows(rles)
    monkeypatch.setattr(rle_module, "BATCH", 3)
    parts = cell_windows(rles)
    assert len(rles) > 3
    for name in ("boxes", "areas", "first", "inside"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_array_equal(cell_boxes(rles), whole.boxes)


def test_a_run_over_several_columns_and_one_of_no_length() -> None:
    """Counts that pycocotools reads but does not write: two runs that touch, with a run of no background between."""
    rle = coco_mask.frPyObjects({"size": [4, 5], "counts": [6, 3, 0, 5, 6]}, 4, 5)
    top, left, window = cell_window(rle)
    assert (top, left) == (0, 1)
    np.testing.assert_array_equal(window, coco_mask.decode(rle)[:, 1:4])


def test_the_window_of_a_cell_in_a_large_picture() -> None:
    side = 60_000  # a mask of its size would take 3.6 GB
    rle = coco_mask.frPyObjects({"size": [side, side], "counts": [50_000 * side + 7, 3, side - 3, 2]}, side, side)
    tracemalloc.start()
    top, left, window = cell_window(rle)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert (top, left) == (7, 50_000)
    assert window.tolist() == [[True, True], [True, True], [True, False]]


@given(st.integers(0, 10_000), st.booleans())
def test_the_runs_of_many_cells_are_those_of_each(seed: int, as_text: bool) -> None:
    masks = _random_masks(seed)
    rles = [_encode(mask) for mask in masks]
    if as_text:
        rles = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
    cell, column, begin, end = column_runs(rles)
    assert (np.diff(cell) >= 0).all()
    for index, mask in enumerate(masks):
        inside = np.zeros_like(mask)
        rows = zip(
            column[cell == index].tolist(), begin[cell == index].tolist(), end[cell == index].tolist(), strict=True
        )
        for x, top, bottom in rows:
            assert bottom > top
            assert not inside[top:bottom, x].any()
            inside[top:bottom, x] = True
        np.testing.assert_array_equal(inside, mask)
    assert [len(values) for values in column_runs([])] == [0] * 4


def test_boxes_of_more_cells_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rles = [_encode(mask) for mask in _random_masks(1, count=11)]
    together = cell_boxes(rles)
    monkeypatch.setattr(rle_module, "BATCH", 3)
    np.testing.assert_array_equal(cell_boxes(rles), together)


def test_a_damaged_text_among_others_is_seen() -> None:
    """Its last number must not go on in the text of the next cell."""
    good = _encode(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="in the middle of a number"):
        column_runs([good, {"size": [4, 4], "counts": b"0o"}, good])
