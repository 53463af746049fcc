"""Reads the pictures of an OME-Zarr by region, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.colours import channels_to_read, pick
from maskrcnn.data.ngff import ZarrImage, open_images, pixel_size_of
from maskrcnn.data.stored import Array, BlockCache, Level, ReadRegion, StoredPicture, check_type, named, readable


def open_zarr(path: Path, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """Open the pictures of a store, or of a group in it: one per well, field, series, time and depth.

    Args:
        path: a folder with an image, a plate, a well, or several images as bioformats2raw writes them.
        channels: the channels to use; None: grey or RGB.
        colours: False returns all channels with their values as stored, as needed for label masks.

    Raises:
        InputError: the folder is no OME-Zarr, its metadata are invalid, zarr is not installed, or
            :func:`channels_to_read` raises it.
    """
    with readable(path):
        cache = BlockCache()
        images = open_images(path)
        return named([each for image in images for each in _pictures(image, path, channels, colours, cache)], path)


def _pictures(
    image: ZarrImage, path: Path, channels: Sequence[int] | None, colours: bool, cache: BlockCache
) -> Iterator[StoredPicture]:
    shape, axes = image.arrays[0].shape, image.axes
    check_type(path, image.arrays[0].dtype)
    count = shape[axes.index("c")] if "c" in axes else 1
    chosen = channels_to_read(count, channels, image.folder, colours)
    pixel_size = pixel_size_of(image)

    def reader(array: Any, plane: dict[str, int]) -> ReadRegion:
        def read(top: int, left: int, height: int, width: int) -> Array:
            with readable(image.folder):
                parts = [
                    _region(
                        array, [{**plane, "c": channel}[axis] for axis in axes[:-2]], cache, top, left, height, width
                    )
                    for channel in chosen
                ]
            if colours:
                return pick(np.stack(parts, axis=2), range(len(parts)))
            return parts[0] if count == 1 else np.stack(parts, axis=2)

        return read

    for number, plane in enumerate(image.planes()):
        full, *coarse = image.arrays
        levels = tuple(Level(reader(array, plane), array.shape[-2:]) for array in coarse)
        place = image.place_of(plane)
        yield StoredPicture(
            reader(full, plane), shape[-2:], image.folder, path.name, number, place, levels, pixel_size, image.channels
        )


def _region(array: Any, outer: Sequence[int], cache: BlockCache, top: int, left: int, height: int, width: int) -> Array:
    """Pixels [height, width] at the indices ``outer`` of the axes before height and width, from the array's chunks."""
    out = np.empty((height, width), array.dtype)
    *depths, rows, columns = array.chunks
    before = [index // depth for index, depth in zip(outer, depths, strict=True)]
    inside = tuple(index % depth for index, depth in zip(outer, depths, strict=True))
    for row in range(top // rows, (top + height - 1) // rows + 1):
        for column in range(left // columns, (left + width - 1) // columns + 1):
            block = _chunk(array, (*before, row, column), cache)[inside]
            y, x = row * rows, column * columns
            y1, x1 = max(y, top), max(x, left)
            y2, x2 = min(y + block.shape[0], top + height), min(x + block.shape[1], left + width)
            out[y1 - top : y2 - top, x1 - left : x2 - left] = block[y1 - y : y2 - y, x1 - x : x2 - x]
    return out


def _chunk(array: Any, index: tuple[int, ...], cache: BlockCache) -> Array:
    where = tuple(slice(i * side, (i + 1) * side) for i, side in zip(index, array.chunks, strict=True))
    chunk = cache.get((array.store_path.path, index), lambda: np.asarray(array[where]))
    assert chunk is not None
    return chunk
