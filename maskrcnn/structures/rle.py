"""Conversion of COCO RLE to label images, without a full-size mask per cell.

An RLE (``{"size": [H, W], "counts": text}``) counts pixels down the columns, alternating background and cell; a label
image holds many cells as numbers. The conversion takes time in proportion to the cells' pixels, not cells times pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LONGEST_CHAIN = 9
"""Maximum number of 5-bit characters of a number: 44 bits and its sign. The 32 bits of pycocotools are not enough for
slides."""

BATCH = 4096
"""Number of cells that are decoded at once, where there may be a slide's."""


def run_lengths(counts: str | bytes | Ints) -> Ints:
    """Decode the ``counts`` of a COCO RLE to run lengths int64 [R], background first; arrays are returned unchanged.

    Raises ValueError for text that does not consist of numbers as in :func:`_decode`.
    """
    return counts if isinstance(counts, np.ndarray) else _decode([counts])[0]


def _all_run_lengths(counts: Sequence[str | bytes | Ints]) -> tuple[Ints, Ints]:
    """:func:`run_lengths` of several RLEs, one after another, int64 [R], and the index of each one's RLE, int64 [R]."""
    texts = [text for text in counts if not isinstance(text, np.ndarray)]
    if len(texts) == len(counts):
        return _decode(texts)
    lengths = [run_lengths(each) for each in counts]
    return np.concatenate(lengths), np.repeat(np.arange(len(counts)), [len(each) for each in lengths])


def _decode(counts: Sequence[str | bytes]) -> tuple[Ints, Ints]:
    """Decode the texts of several RLEs at once, which is far faster than one by one.

    Each number is a chain of characters with 5 bits each (code minus 48), the lowest first; bit 5 means that the chain
    continues, and bit 4 of its last character is the sign. From the fourth number on, a text holds the difference to
    the number two before (``rleToString`` in pycocotools' maskApi.c).

    Returns:
        The run lengths of all texts one after another, int64 [R], and the index of each one's text, int64 [R].

    Raises:
        ValueError: a text does not consist of such chains.
    """
    texts = [text.encode("utf-8", "replace") if isinstance(text, str) else text for text in counts]
    text = b"".join(texts)
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return codes, codes
    stops = np.cumsum([len(text) for text in texts])
    last = (codes & 32) == 0
    first = np.flatnonzero(np.concatenate(([True], last[:-1])))
    chain = np.cumsum(last) - last  # which number a character belongs to
    digit = np.arange(len(codes)) - first[chain]
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError(f"run lengths with the character {chr(text[np.argmax((codes < 0) | (codes > 63))])!r}")
    if not last[stops[stops > 0] - 1].all() or digit.max() >= LONGEST_CHAIN:
        raise ValueError("run lengths that stop in the middle of a number, or hold one of more than 44 bits")
    numbers = np.add.reduceat((codes & 31) << (5 * digit), first)
    negative = (codes[last] & 16) != 0
    numbers[negative] -= 1 << (5 * (digit[last][negative] + 1))
    owner = np.searchsorted(stops, np.flatnonzero(last), side="right")
    start, place = _places(owner, len(texts))
    for chosen in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        total = np.cumsum(np.where(chosen, numbers, 0))
        numbers[chosen] = (total - np.append(0, total)[start][owner])[chosen]
    return numbers, owner


def _places(owner: Ints, count: int) -> tuple[Ints, Ints]:
    """The index of the first entry of each of ``count`` owners in sorted ``owner``, and each entry's place among its
    owner's."""
    start = np.searchsorted(owner, np.arange(count))
    return start, np.arange(len(owner)) - start[owner]


def pixels(rle: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Indices x * H + y of the cell's pixels, ascending: int64 [area]."""
    lengths = run_lengths(rle["counts"])
    stops = np.cumsum(lengths)[1::2]
    inside = lengths[1::2]
    return np.arange(inside.sum()) + np.repeat(stops - np.cumsum(inside), inside)


def column_runs(rles: Sequence[dict[str, Any]]) -> tuple[Ints, Ints, Ints, Ints]:
    """The runs of cells of one picture, split at the ends of columns, in order of cells, columns and rows.

    Returns:
        Cell, column, first row and end row (exclusive) of each run, int64 [R] each. About 300 bytes per run are in
        memory meanwhile: thousands of cells at a time, not all of a slide.
    """
    if not rles:
        return (np.zeros(0, np.int64),) * 4
    height = rles[0]["size"][0]
    lengths, cell = _all_run_lengths([rle["counts"] for rle in rles])
    start, place = _places(cell, len(rles))
    stops = np.cumsum(lengths)
    stops -= np.append(0, stops)[start][cell]
    inside = (place % 2 == 1) & (lengths > 0)
    cell, stops = cell[inside], stops[inside]
    starts = stops - lengths[inside]
    first = starts // height
    columns = (stops - 1) // height - first + 1  # per run
    run = np.repeat(np.arange(len(starts)), columns)
    column = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
    begin, end = np.maximum(starts[run] - column * height, 0), np.minimum(stops[run] - column * height, height)
    return cell[run], column, begin, end


def cell_boxes(rles: Sequence[dict[str, Any]]) -> Ints:
    """Tight boxes of the cells' pixels as [top, left, bottom, right], bottom and right exclusive.

    Returns:
        int64 [K, 4]; [0, 0, 0, 0] for a cell without pixels. The time grows with the runs, not the pixels.
    """
    parts = [rles[start : start + BATCH] for start in range(0, len(rles), BATCH)]
    return np.concatenate([np.zeros((0, 4), np.int64), *(_boxes(len(part), *column_runs(part)) for part in parts)])


def cell_areas(rles: Sequence[dict[str, Any]]) -> Ints:
    """Number of pixels of each cell, int64 [K]."""
    parts = [rles[start : start + BATCH] for start in range(0, len(rles), BATCH)]
    return np.concatenate([np.zeros(0, np.int64), *(_areas(len(part), *column_runs(part)) for part in parts)])


def _areas(count: int, cell: Ints, column: Ints, begin: Ints, end: Ints) -> Ints:
    return np.bincount(cell, end - begin, minlength=count).astype(np.int64)


def _boxes(count: int, cell: Ints, column: Ints, begin: Ints, end: Ints) -> Ints:
    """Boxes [count, 4] of cells with these :func:`column_runs`."""
    boxes = np.zeros((count, 4), np.int64)
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    if len(first):
        last = np.append(first[1:], len(cell)) - 1
        sides = np.minimum.reduceat(begin, first), column[first], np.maximum.reduceat(end, first), column[last] + 1
        boxes[cell[first]] = np.stack(sides, axis=1)
    return boxes


@dataclass(frozen=True)
class CellWindows:
    """The masks of cells in their tight boxes, one after another, from :func:`cell_windows`.

    Attributes:
        boxes: int64 [K, 4], see :func:`cell_boxes`.
        areas: pixels of each cell, int64 [K].
        first: index of each cell's window in ``inside``, int64 [K].
        inside: bool, the windows' columns from the left, each followed by one pixel outside.
    """

    boxes: Ints
    areas: Ints
    first: Ints
    inside: npt.NDArray[np.bool_]

    def mask(self, index: int) -> npt.NDArray[np.bool_]:
        """The window of a cell, bool [h, w]."""
        top, left, bottom, right = self.boxes[index].tolist()
        if bottom == top:
            return np.zeros((0, 0), bool)
        start, stride = self.first[index], bottom - top + 1
        return np.ascontiguousarray(
            self.inside[start : start + (right - left) * stride].reshape(right - left, stride)[:, :-1].T
        )

    def intersections(self, pairs: Ints) -> Ints:
        """Number of pixels that both cells of each pair [P, 2] have, int64 [P]."""
        boxes = self.boxes[pairs]
        corner = boxes[:, :, :2].max(axis=1)
        height, width = np.maximum(boxes[:, :, 2:].min(axis=1) - corner, 0).T
        pair = np.repeat(np.arange(len(pairs)), height * width)  # one entry per pixel that both boxes have
        place = np.arange(len(pair)) - np.repeat(np.cumsum(height * width) - height * width, height * width)
        column, row = np.divmod(place, height[pair])
        both = np.ones(len(pair), bool)
        for side in (0, 1):
            offset = corner - boxes[:, side, :2]
            stride = boxes[:, side, 2] - boxes[:, side, 0] + 1
            start = self.first[pairs[:, side]] + offset[:, 1] * stride + offset[:, 0]
            both &= self.inside[start[pair] + column * stride[pair] + row]
        return np.bincount(pair[both], minlength=len(pairs))


def cell_windows(rles: Sequence[dict[str, Any]]) -> CellWindows:
    """The masks of cells of one picture in their tight boxes; the time grows with the runs and the boxes."""
    parts = [_windows(rles[start : start + BATCH]) for start in range(0, max(1, len(rles)), BATCH)]
    shift = np.cumsum([0, *(len(part.inside) for part in parts)])
    return CellWindows(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.areas for part in parts]),
        np.concatenate([part.first + start for part, start in zip(parts, shift, strict=False)]),
        np.concatenate([part.inside for part in parts]),
    )


def _windows(rles: Sequence[dict[str, Any]]) -> CellWindows:
    cell, column, begin, end = column_runs(rles)
    boxes = _boxes(len(rles), cell, column, begin, end)
    top, left, bottom, right = boxes.T
    stride = bottom - top + 1
    first = np.cumsum(stride * (right - left))
    change = np.zeros(first[-1] if len(first) else 0, np.int8)  # +1 where a run begins, -1 after its end
    first -= stride * (right - left)
    start = first[cell] + (column - left[cell]) * stride[cell] - top[cell]
    change[start + begin] += 1
    change[start + end] -= 1
    areas = _areas(len(rles), cell, column, begin, end)
    return CellWindows(boxes, areas, first, np.cumsum(change, dtype=np.int8) > 0)


def cell_window(rle: dict[str, Any]) -> tuple[int, int, npt.NDArray[np.bool_]]:
    """The mask of one cell in its tight box.

    Returns:
        Row and column of the box's first pixel, and the mask bool [h, w]; (0, 0, bool [0, 0]) for a cell without
        pixels.
    """
    windows = cell_windows([rle])
    return int(windows.boxes[0, 0]), int(windows.boxes[0, 1]), windows.mask(0)


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
