"""Writes label images as TIFFs that ImageJ opens, and as tiled TIFFs for pictures larger than the memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch

from maskrcnn.data.pixel_size import MICROMETRES
from maskrcnn.files import atomic_write
from maskrcnn.structures import Cells, Detections
from maskrcnn.structures.rle import cell_boxes, cell_window

TILE = 256
"""Side of a tile, and rows of a strip, in pixels."""

LARGEST_IN_STRIPS = 2**28
"""Number of pixels of a picture above which its label image has tiles. ImageJ opens compressed strips, but neither
tiles nor BigTIFF, and always the whole picture: one of 16384 x 16384 pixels takes 0.5 GiB of its memory (1 GiB of 32
bits). Programs for larger pictures (QuPath, Bio-Formats in Fiji) read by region, for which tiles are better."""

Ints = npt.NDArray[np.int64]


def write_labels(path: Path, detections: Detections | Cells, micrometres: float | None = None) -> None:
    """Write all cells into one label image.

    The file is a TIFF [H, W]: 0 for background, i + 1 for detection i, the same id as in the table, GeoJSON and ROIs.
    It is of uint16 for up to 65,535 detections, else of uint32, which ImageJ shows as 32-bit numbers, exact up to 2^24.
    Where cells overlap, the higher score wins (of equal scores, the later detection), as in
    :meth:`Detections.to_labels`; a completely covered cell has no pixels. Up to :data:`LARGEST_IN_STRIPS` pixels, the
    TIFF has strips of 256 rows, above tiles of 256x256 pixels; it is compressed with zlib, and a BigTIFF if it may
    exceed 4 GiB. Only one strip or row of tiles is in memory at a time.

    Args:
        path: the file; replaced when the new one is complete.
        detections: the cells of one picture, on any device.
        micrometres: the side of a pixel, written as the TIFF's resolution; None: unknown.

    Raises:
        InputError: the file cannot be written.
    """
    rles = detections.to_rle()
    _write(path, rles, cell_boxes(rles), painting_order(detections), detections.size, micrometres)


def write_class_labels(
    folder: Path, detections: Detections | Cells, num_classes: int, micrometres: float | None = None
) -> list[Path]:
    """Write ``class1.tif``, ``class2.tif``, ... in the HW3 layout, one label image per class, into ``folder``.

    Each is written like :func:`write_labels`, with only the cells of its class, so that cells of different classes may
    overlap. The ids are the same and therefore have gaps: detection i is i + 1 in the file of its class. For a class
    without cells a background file is written, which replaces that of an earlier run.

    Args:
        folder: folder of the files; created if it is missing.
        detections: the cells of one picture, on any device.
        num_classes: number of cell classes K, and of files.
        micrometres: see :func:`write_labels`.

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
        _write(path, rles, boxes, order[classes[order] == number], detections.size, micrometres)
    return paths


def classes_of(detections: Detections | Cells, num_classes: int) -> list[int]:
    """The classes of the detections as a list; raises ValueError for one that is not in 1..K."""
    classes: list[int] = detections.labels.tolist()
    for index, label in enumerate(classes):
        if not 1 <= label <= num_classes:
            raise ValueError(f"labels: detection {index} is of class {label}, expected 1 to {num_classes}")
    return classes


def painting_order(detections: Detections | Cells) -> Ints:
    """Indices of the detections by ascending score, so that the highest score is painted last."""
    return torch.argsort(detections.scores.cpu(), stable=True).numpy()


def _write(
    path: Path,
    rles: list[dict[str, Any]],
    boxes: Ints,
    order: Ints,
    size: tuple[int, int],
    micrometres: float | None,
) -> None:
    dtype = np.dtype(np.uint16 if len(rles) < 2**16 else np.uint32)
    bands = _bands(rles, boxes, order, size, dtype)
    tiled = size[0] * size[1] > LARGEST_IN_STRIPS
    with atomic_write(path) as beside:
        tifffile.imwrite(
            beside,
            _tiles(bands, size, dtype) if tiled else (zlib.compress(band.tobytes()) for band in bands),
            shape=size,
            dtype=dtype,
            tile=(TILE, TILE) if tiled else None,
            rowsperstrip=None if tiled else TILE,
            compression="zlib",
            photometric="minisblack",
            bigtiff=tiled and needs_bigtiff(size, dtype),
            resolution=None if micrometres is None else (MICROMETRES["cm"] / micrometres,) * 2,
            resolutionunit=None if micrometres is None else "CENTIMETER",
            metadata=None,
        )


def needs_bigtiff(size: tuple[int, int], dtype: np.dtype[Any]) -> bool:
    """Whether the tiles of a picture of (H, W) pixels might exceed a TIFF's 32-bit offsets.

    Assumes that zlib does not compress them, with 32 MiB for its overhead and the tile tables.
    """
    height, width = (-(-side // TILE) * TILE for side in size)
    return height * width * dtype.itemsize > 2**32 - 2**25


def _bands(
    rles: list[dict[str, Any]], boxes: Ints, order: Ints, size: tuple[int, int], dtype: np.dtype[Any]
) -> Iterator[npt.NDArray[Any]]:
    """The label image, :data:`TILE` rows at a time; cells are painted in the order ``order``."""
    top, bottom = boxes[order, 0], boxes[order, 2]
    for first in range(0, size[0], TILE):
        band = np.zeros((min(TILE, size[0] - first), size[1]), dtype)
        for index in order[(top < first + TILE) & (bottom > first)]:
            _paint(band, first, rles[index], index + 1)
        yield band


def _tiles(bands: Iterable[npt.NDArray[Any]], size: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[bytes]:
    """The compressed tiles from left to right, row by row."""
    background = zlib.compress(bytes(TILE * TILE * dtype.itemsize))  # most tiles of a sparse slide
    for band in bands:
        for left in range(0, size[1], TILE):
            tile = band[:, left : left + TILE]
            if tile.any():
                whole = np.zeros((TILE, TILE), dtype)
                whole[: tile.shape[0], : tile.shape[1]] = tile
                yield zlib.compress(whole.tobytes())
            else:
                yield background


def _paint(band: npt.NDArray[Any], first: int, rle: dict[str, Any], value: int) -> None:
    """Set the cell's pixels to ``value`` in ``band``, which begins at row ``first`` of the picture."""
    top, left, mask = cell_window(rle)
    mask = mask[max(first - top, 0) : first + TILE - top]
    top = max(top, first) - first
    band[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = value
