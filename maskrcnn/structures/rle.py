"""Conversion of COCO RLE to label images, without a full-size mask per cell.

An RLE (``{"size": [H, W], "counts": text}``) counts pixels down the columns, alternating background and cell; a label
image holds many cells as numbers. The conversion takes time in proportion to the cells' pixels, not cells times pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LONGEST_CHAIN = 7
"""Number of 5-bit characters that a number of 32 bits and its sign take."""


def run_lengths(counts: str | bytes | Ints) -> Ints:
    """Decode the ``counts`` of a COCO RLE to run lengths int64 [R], background first; arrays are returned unchanged.

    Each number is a chain of characters with 5 bits each (code minus 48), the lowest first; bit 5 means that the chain
    continues, and bit 4 of its last character is the sign. From the fourth number on, the text holds the difference to
    the number two before (``rleToString`` in pycocotools' maskApi.c).

    Raises ValueError for text that does not consist of such chains.
    """
    if isinstance(counts, np.ndarray):
        return counts
    text = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return codes
    last = (codes & 32) == 0
    first = np.flatnonzero(np.concatenate(([True], last[:-1])))
    chain = np.cumsum(last) - last  # which number a character belongs to
    digit = np.arange(len(codes)) - first[chain]
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError(f"run lengths with the character {chr(text[np.argmax((codes < 0) | (codes > 63))])!r}")
    if not last[-1] or digit.max() >= LONGEST_CHAIN:
        raise ValueError("run lengths that stop in the middle of a number, or hold one of more than 32 bits")
    numbers = np.add.reduceat((codes & 31) << (5 * digit), first)
    negative = (codes[last] & 16) != 0
    numbers[negative] -= 1 << (5 * (digit[last][negative] + 1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def pixels(rle: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Indices x * H + y of the cell's pixels, ascending: int64 [area]."""
    lengths = run_lengths(rle["counts"])
    stops = np.cumsum(lengths)[1::2]
    inside = lengths[1::2]
    return np.arange(inside.sum()) + np.repeat(stops - np.cumsum(inside), inside)


def _column_runs(rle: dict[str, Any]) -> tuple[Ints, Ints, Ints]:
    """The cell's runs, split at the ends of columns: column, first row and end row (exclusive), int64 [R] each."""
    height = rle["size"][0]
    lengths = run_lengths(rle["counts"])
    stops = np.cumsum(lengths)[1::2]
    inside = lengths[1::2]
    starts, stops = (stops - inside)[inside > 0], stops[inside > 0]
    first = starts // height
    columns = (stops - 1) // height - first + 1  # per run
    run = np.repeat(np.arange(len(starts)), columns)
    column = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
    return column, np.maximum(starts[run] - column * height, 0), np.minimum(stops[run] - column * height, height)


def _bounds(column: Ints, begin: Ints, end: Ints) -> tuple[int, int, int, int]:
    if not len(column):
        return 0, 0, 0, 0
    return int(begin.min()), int(column[0]), int(end.max()), int(column[-1]) + 1


def cell_boxes(rles: Sequence[dict[str, Any]]) -> npt.NDArray[np.int64]:
    """Tight boxes of the cells' pixels as [top, left, bottom, right], bottom and right exclusive.

    Returns:
        int64 [K, 4]; [0, 0, 0, 0] for a cell without pixels. The time grows with the runs, not the pixels.
    """
    return np.array([_bounds(*_column_runs(rle)) for rle in rles], np.int64).reshape(-1, 4)


def cell_window(rle: dict[str, Any]) -> tuple[int, int, npt.NDArray[np.bool_]]:
    """The mask of a cell in its tight box; the time grows with the runs and the box, not with the image.

    Returns:
        Row and column of the box's first pixel, and the mask bool [h, w]; (0, 0, bool [0, 0]) for a cell without
        pixels.
    """
    column, begin, end = _column_runs(rle)
    top, left, bottom, right = _bounds(column, begin, end)
    change = np.zeros((right - left, bottom - top + 1), np.int8)  # +1 where a run begins, -1 after its end
    change[column - left, begin - top] += 1
    change[column - left, end - top] -= 1
    inside = np.cumsum(change, axis=1, dtype=np.int8)[:, :-1] > 0
    return top, left, np.ascontiguousarray(inside.T)


def label_image(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Label image int32 [H, W] in which cell i has the value i + 1; where cells overlap, the later one wins."""
    height, width = size
    columns = np.zeros(width * height, np.int32)
    for value, rle in enumerate(rles, start=1):
        columns[pixels(rle)] = value
    return columns.reshape(width, height).T


def label_planes(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Label planes int32 [P, H, W] in which cell i has the value i + 1, whole in the first plane where it fits."""
    height, width = size
    planes: list[npt.NDArray[np.int32]] = []
    for value, rle in enumerate(rles, start=1):
        inside = pixels(rle)
        free = next((plane for plane in planes if not plane[inside].any()), None)
        if free is None:
            free = np.zeros(width * height, np.int32)
            planes.append(free)
        free[inside] = value
    rows = np.empty((len(planes), height, width), np.int32)
    for index, plane in enumerate(planes):
        rows[index] = plane.reshape(width, height).T
    return rows
