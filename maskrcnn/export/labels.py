"""Label images of the cells in a picture: one number per pixel, in tiles, also of pictures larger than the memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from maskrcnn.files import atomic_write
from maskrcnn.structures import Detections
from maskrcnn.structures.rle import cell_boxes, cell_window

TILE = 256
"""Pixels of a tile's side."""

Ints = npt.NDArray[np.int64]


def write_labels(path: Path, detections: Detections) -> None:
    """Write all cells into one label image.

    A TIFF of uint32 [H, W]: 0 for background, i + 1 for detection i, the id that the table and GeoJSON give it too.
    Where cells overlap, the higher score wins (of two equal scores, the later detection), as in
    :meth:`Detections.to_labels`; a cell that others cover wholly has no pixel. The file has tiles of 256x256 pixels,
    compressed by zlib, and is a BigTIFF where 4 GiB might not hold it. It is written a row of tiles at a time: one row
    is in memory, never the picture.

    Args:
        path: the file; it is replaced when the new one is complete.
        detections: the cells of one picture, on any device.

    Raises:
        InputError: the file cannot be written.
    """
    rles = detections.to_rle()
    _write(path, rles, cell_boxes(rles), _from_below(detections), detections.size)


def write_class_labels(folder: Path, detections: Detections, num_classes: int) -> list[Path]:
    """Write ``class1.tif``, ``class2.tif``, ... in the HW3 layout, one label image per class, into ``folder``.

    Each is as :func:`write_labels` writes it, but holds the cells of its class alone, so that cells of two classes may
    overlap. The numbers are the same, hence with gaps: detection i is i + 1 in the file of its class. A class without
    cells gets a file of background, in which no cell of an earlier run stays behind.

    Args:
        folder: where the files go; it is made where it is missing.
        detections: the cells of one picture, on any device.
        num_classes: number of cell classes K, thus of files.

    Returns:
        The files of classes 1..K.

    Raises:
        InputError: a file cannot be written.
        ValueError: a detection's class is not among 1..K.
    """
    classes = np.array(classes_of(detections, num_classes), np.int64)
    rles = detections.to_rle()
    boxes, order = cell_boxes(rles), _from_below(detections)
    paths = [folder / f"class{number}.tif" for number in range(1, num_classes + 1)]
    for number, path in enumerate(paths, start=1):
        _write(path, rles, boxes, order[classes[order] == number], detections.size)
    return paths


def classes_of(detections: Detections, num_classes: int) -> list[int]:
    """The classes 1..K of the detections; raises ValueError for one that is not among them."""
    classes: list[int] = detections.labels.tolist()
    for index, label in enumerate(classes):
        if not 1 <= label <= num_classes:
            raise ValueError(f"labels: detection {index} is of class {label}, expected 1 to {num_classes}")
    return classes


def _from_below(detections: Detections) -> Ints:
    """Indices of the detections in the order in which they are painted: the highest score last."""
    return torch.argsort(detections.scores.cpu(), stable=True).numpy()


def _write(path: Path, rles: list[dict[str, Any]], boxes: Ints, order: Ints, size: tuple[int, int]) -> None:
    with atomic_write(path) as beside:
        tifffile.imwrite(
            beside,
            _tiles(rles, boxes, order, size),
            shape=size,
            dtype=np.uint32,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack",
            bigtiff=needs_bigtiff(size),
            metadata=None,
        )


def needs_bigtiff(size: tuple[int, int]) -> bool:
    """Whether the tiles of a picture of (H, W) pixels might be more than a TIFF's 32-bit offsets reach.

    Zlib may leave them all as they are, and 32 MiB are kept for what it and the tables of tiles add.
    """
    height, width = (-(-side // TILE) * TILE for side in size)
    return height * width * np.dtype(np.uint32).itemsize > 2**32 - 2**25


def _tiles(rles: list[dict[str, Any]], boxes: Ints, order: Ints, size: tuple[int, int]) -> Iterator[bytes]:
    """The compressed tiles from left to right, row by row; ``order`` has the cells that are painted, in that order."""
    columns = -(-size[1] // TILE)
    background = zlib.compress(bytes(TILE * TILE * np.dtype(np.uint32).itemsize))  # most tiles of a sparse slide
    top, bottom = boxes[order, 0], boxes[order, 2]
    for first in range(0, size[0], TILE):
        cells = order[(top < first + TILE) & (bottom > first)]
        if not len(cells):
            yield from [background] * columns
            continue
        band = np.zeros((TILE, columns * TILE), np.uint32)
        for index in cells:
            _paint(band, first, rles[index], index + 1)
        for left in range(0, columns * TILE, TILE):
            tile = band[:, left : left + TILE]
            yield zlib.compress(tile.tobytes()) if tile.any() else background


def _paint(band: npt.NDArray[np.uint32], first: int, rle: dict[str, Any], value: int) -> None:
    """Set the cell's pixels to ``value`` in ``band``, which begins at row ``first`` of the picture."""
    top, left, mask = cell_window(rle)
    mask = mask[max(first - top, 0) : first + TILE - top]
    top = max(top, first) - first
    band[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = value
