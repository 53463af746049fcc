"""Writes label images as tiled TIFFs, also for pictures larger than the memory."""

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
"""Side of a tile in pixels."""

Ints = npt.NDArray[np.int64]


def write_labels(path: Path, detections: Detections) -> None:
    """Write all cells into one label image.

    The file is a TIFF of uint32 [H, W]: 0 for background, i + 1 for detection i, the same id as in the table and
    GeoJSON. Where cells overlap, the higher score wins (of equal scores, the later detection), as in
    :meth:`Detections.to_labels`; a completely covered cell has no pixels. The TIFF has tiles of 256x256 pixels
    compressed with zlib, and is a BigTIFF if it may exceed 4 GiB. Only one row of tiles is in memory at a time.

    Args:
        path: the file; replaced when the new one is complete.
        detections: the cells of one picture, on any device.

    Raises:
        InputError: the file cannot be written.
    """
    rles = detections.to_rle()
    _write(path, rles, cell_boxes(rles), painting_order(detections), detections.size)


def write_class_labels(folder: Path, detections: Detections, num_classes: int) -> list[Path]:
    """Write ``class1.tif``, ``class2.tif``, ... in the HW3 layout, one label image per class, into ``folder``.

    Each is written like :func:`write_labels`, with only the cells of its class, so that cells of different classes may
    overlap. The ids are the same and therefore have gaps: detection i is i + 1 in the file of its class. For a class
    without cells a background file is written, which replaces that of an earlier run.

    Args:
        folder: folder of the files; created if it is missing.
        detections: the cells of one picture, on any device.
        num_classes: number of cell classes K, and of files.

    Returns:
        The files of classes 1..K.

    Raises:
        InputError: a file cannot be written.
        ValueError: a detection's class is not in 1..K.
    """
    classes = np.array(classes_of(detections, num_classes), np.int64)
    rles = detections.to_rle()
    boxes, order = cell_boxes(rles), painting_order(detections)
    paths = [folder / f"class{number}.tif" for number in range(1, num_classes + 1)]
    for number, path in enumerate(paths, start=1):
        _write(path, rles, boxes, order[classes[order] == number], detections.size)
    return paths


def classes_of(detections: Detections, num_classes: int) -> list[int]:
    """The classes of the detections as a list; raises ValueError for one that is not in 1..K."""
    classes: list[int] = detections.labels.tolist()
    for index, label in enumerate(classes):
        if not 1 <= label <= num_classes:
            raise ValueError(f"labels: detection {index} is of class {label}, expected 1 to {num_classes}")
    return classes


def painting_order(detections: Detections) -> Ints:
    """Indices of the detections by ascending score, so that the highest score is painted last."""
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
    """Whether the tiles of a picture of (H, W) pixels might exceed a TIFF's 32-bit offsets.

    Assumes that zlib does not compress them, with 32 MiB for its overhead and the tile tables.
    """
    height, width = (-(-side // TILE) * TILE for side in size)
    return height * width * np.dtype(np.uint32).itemsize > 2**32 - 2**25


def _tiles(rles: list[dict[str, Any]], boxes: Ints, order: Ints, size: tuple[int, int]) -> Iterator[bytes]:
    """The compressed tiles from left to right, row by row; cells are painted in the order ``order``."""
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
