"""Segmentations in all forms: the pixels that pycocotools has, and nothing else gets through to its C code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn.data.segmentation import checked_rle
from maskrcnn.structures.rle import cell_window, pixels

HEIGHT, WIDTH = 20, 30


def mask(segmentation: Any) -> np.ndarray:
    rle = checked_rle(segmentation, HEIGHT, WIDTH)
    assert rle["size"] == [HEIGHT, WIDTH]
    flat = np.zeros(HEIGHT * WIDTH, np.uint8)
    flat[pixels(rle)] = 1
    return flat.reshape(WIDTH, HEIGHT).T


@pytest.mark.parametrize(
    "polygons",
    [
        [[2, 3, 12, 3, 12, 9, 2, 9]],
        [[2.25, 3.5, 12, 3, 12, 9], [20, 15, 25, 15, 25, 18]],
        [[-5, -5, 15, -5, 15, 40, -5, 40]],  # reaches beyond the picture
        [[-3e5, -3e5, 3e5, -3e5, 3e5, 3e5]],
        [[2, 3, 12, 3, 12, 9], [1, 1], []],  # parts of fewer than three points draw nothing
    ],
)
def test_polygons_have_the_pixels_of_pycocotools(polygons: list[list[float]]) -> None:
    whole = [polygon for polygon in polygons if len(polygon) >= 6]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(whole, HEIGHT, WIDTH)))
    assert np.array_equal(mask(polygons), expected)


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_in_both_forms(seed: int) -> None:
    expected = (np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(expected))["counts"].decode()
    flat = np.concatenate([[0], expected.T.reshape(-1), [2]])
    edges = np.flatnonzero(np.diff(flat)[:-1] != 0)
    numbers = np.diff(np.concatenate([[0], edges, [HEIGHT * WIDTH]])).tolist()
    for counts in (text, numbers):
        segmentation = {"size": [HEIGHT, WIDTH], "counts": counts}
        assert np.array_equal(mask(segmentation), expected)
        top, left, inside = cell_window(checked_rle(segmentation, HEIGHT, WIDTH))
        height, width = inside.shape
        assert np.array_equal(inside, expected[top : top + height, left : left + width])


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


LARGER = coco_mask.encode(np.asfortranarray(np.eye(40, dtype=np.uint8)))["counts"].decode()
TEXT = coco_mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))["counts"].decode()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (rle([600], (9, 9)), r"size \[9, 9\], the picture has \[20, 30\]"),
        (rle([20, 50]), "the runs have 70 pixels, the picture has 600"),  # pycocotools leaves 530 uninitialised
        (rle(LARGER), "the runs have 1600 pixels, the picture has 600"),
        (rle(TEXT[:-3]), "the runs have .* pixels, the picture has 600"),
        (rle(str(TEXT.encode())), r"counts are str\(\) of bytes; expected bytes.decode\(\)"),
        (rle("P" * 20), "stop in the middle of a number"),
        (rle("o" * 9 + "1"), "more than 44 bits"),
        (rle("o" * 8 + "1"), r"a run of \d+ pixels, the picture has 600"),
        (rle("a b"), "run lengths with the character ' '"),
        (rle("\ud800"), "run lengths with the character|the runs have"),
        (rle([-5, 605]), "a run of -5 pixels"),
        (rle([300.5, 299.5]), "not whole numbers"),
        (rle([10**30, 600 - 10**30]), "not whole numbers of 32 bits"),
        (rle(None), "counts are a NoneType"),
        (rle([]), "the runs have 0 pixels"),
        ({"counts": [600]}, "size None"),
        ("text", "a str, expected polygons or an object"),
        (7, "a int, expected polygons or an object"),
        ([[2, 3, 12, 3, math.nan, 9]], "the coordinate nan"),
        ([[2, 3, 12, 3, 1e9, 9]], "the coordinate 1000000000.0"),
        ([[2, 3, 12, 3, 10**30, 9]], "the coordinate 1000"),
        ([[2, 3, 12, 3, "12", 9]], "the coordinate 12"),
        ([[2, 3, 12, 3, None, 9]], "the coordinate None"),
        ([[2, 3, 12, 3, 12, 9, 2]], "a polygon of 7 numbers"),
        ([[2, 3], [12, 3], [12, 9]], r"expected polygons as \[\[x0, y0"),
        ([[[2, 3], [12, 3], [12, 9]]], r"expected polygons as \[\[x0, y0"),
        ([2, 3, 12, 3, 12, 9], r"expected polygons as \[\[x0, y0"),
        ([[1, 2, 3, 4]], "no polygon of three points or more"),
        ([[-9e5, 0, 9e5, 0, 0, 1] * 2], "an outline of 7.2e\\+06 pixels"),
    ],
)
def test_what_cannot_be_used_is_named(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_rle(segmentation, HEIGHT, WIDTH)
