"""COCO run lengths and label images, without a full-size mask in between.

An RLE (``{"size": [H, W], "counts": text}``) counts pixels down the columns, background and cell in turns; a label
image holds many cells as numbers. From one to the other it costs the pixels of the cells, not cells times pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def run_lengths(counts: str | bytes) -> npt.NDArray[np.int64]:
    """The run lengths that COCO's text stands for, background first.

    Each number is a chain of characters, 5 bits in each (code minus 48), the lowest first; bit 5 says that the chain
    goes on, and bit 4 of the last one is the sign. From the fourth number on it is the difference to the number two
    before (``rleToString`` in pycocotools' maskApi.c).
    """
    text = counts.encode() if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return codes
    last = (codes & 32) == 0
    first = np.flatnonzero(np.concatenate(([True], last[:-1])))
    chain = np.cumsum(last) - last  # which number a character belongs to
    digit = np.arange(len(codes)) - first[chain]
    numbers = np.add.reduceat((codes & 31) << (5 * digit), first)
    negative = (codes[last] & 16) != 0
    numbers[negative] -= 1 << (5 * (digit[last][negative] + 1))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def pixels(rle: dict[str, Any]) -> npt.NDArray[np.int64]:
    """The cell's pixels as indices x * H + y, ascending: int64 [area]."""
    lengths = run_lengths(rle["counts"])
    stops = np.cumsum(lengths)[1::2]
    inside = lengths[1::2]
    return np.arange(inside.sum()) + np.repeat(stops - np.cumsum(inside), inside)


def label_image(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Cell i as the value i + 1 in int32 [H, W], 0 elsewhere; where cells overlap, the later one is seen."""
    height, width = size
    columns = np.zeros(width * height, np.int32)
    for value, rle in enumerate(rles, start=1):
        columns[pixels(rle)] = value
    return columns.reshape(width, height).T


def label_planes(rles: Sequence[dict[str, Any]], size: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Cell i as the value i + 1 in int32 [P, H, W], whole in the first plane where its pixels are free."""
    height, width = size
    planes: list[npt.NDArray[np.int32]] = []
    for value, rle in enumerate(rles, start=1):
        inside = pixels(rle)
        free = next((plane for plane in planes if not plane[inside].any()), None)
        if free is None:
            free = np.zeros(width * height, np.int32)
            planes.append(free)
        free[inside] = value
    return np.array(planes, np.int32).reshape(len(planes), width, height).transpose(0, 2, 1)
