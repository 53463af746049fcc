"""Reads Leica's LIF, LOF and XLIF with liffile: one picture per image, tile, time and depth, by frame."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.colours import channels_to_read, pick
from maskrcnn.data.pixel_size import MICROMETRES, PixelSize
from maskrcnn.data.stored import (
    Array,
    BlockCache,
    ReadRegion,
    StoredPicture,
    check_type,
    named,
    needed,
    place_of,
    readable,
)
from maskrcnn.errors import InputError

SUFFIXES = (".lif", ".lof", ".xlif")

_AXES = {"λ": "emission", "Λ": "excitation"}
"""Names in places for axes whose letters are not plain."""


def open_lif(path: Path, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """Open the pictures of a Leica file. Images without height and width (xz, lines) are left out.

    Frames are read whole, and cached.

    Args:
        path: the file.
        channels: the channels to use; None: grey or RGB.
        colours: False returns all channels with their values as stored.

    Raises:
        InputError: the file is damaged or has no image of height and width, liffile is not installed, or
            :func:`channels_to_read` raises it.
    """
    with readable(path):
        file = needed("liffile", "lif", path).LifFile(path)
        images = [(number, image) for number, image in enumerate(file.images) if {"Y", "X"} <= set(_frame_axes(image))]
        if not images:
            raise InputError(f"{path}: {len(file.images)} images, none of height x width")
        lock, cache = threading.Lock(), BlockCache()
        weakref.finalize(lock, file.close)
        found = [
            picture
            for number, image in images
            for picture in _pictures(
                path, number if len(file.images) > 1 else None, image, channels, colours, cache, lock
            )
        ]
        return named(found, path)


def _frame_axes(image: Any) -> tuple[str, ...]:
    """The axes of a frame: the last two, and the samples of RGB."""
    dims: tuple[str, ...] = image.dims
    return dims[-3:] if dims[-1] == "S" else dims[-2:]


def _pictures(
    path: Path,
    number: int | None,
    image: Any,
    channels: Sequence[int] | None,
    colours: bool,
    cache: BlockCache,
    lock: Any,
) -> Iterator[StoredPicture]:
    check_type(path, image.dtype)
    sizes = dict(image.sizes)
    size = sizes["Y"], sizes["X"]
    count = sizes.get("C", 1) * sizes.get("S", 1)
    chosen = channels_to_read(count, channels, path, colours)
    samples = sizes.get("S", 1)
    outer = [axis for axis in image.dims if axis not in ("Y", "X", "S", "C")]

    def reader(indices: dict[str, int]) -> ReadRegion:
        def frame(channel: int) -> Array:
            of_channel = {**indices, "C": channel} if "C" in sizes else indices
            whole = cache.get((number, *of_channel.items()), lambda: np.asarray(image.frame(**of_channel)))
            assert whole is not None
            return whole.reshape(*size, samples)

        def read(top: int, left: int, height: int, width: int) -> Array:
            with lock, readable(path):
                planes = [frame(c // samples)[top : top + height, left : left + width, c % samples] for c in chosen]
            pixels = np.stack(planes, axis=2)
            return pick(pixels, range(len(chosen))) if colours or count == 1 else pixels

        return read

    pixel_size = _pixel_size(image)
    for indices in product(*(range(sizes[axis]) for axis in outer)):
        by_axis = dict(zip(outer, indices, strict=True))
        place = place_of(s=number, **_inner(by_axis, sizes))
        yield StoredPicture(reader(by_axis), size, path, path.name, 0, place, (), pixel_size)


def _inner(indices: dict[str, int], sizes: dict[str, int]) -> dict[str, int]:
    return {_AXES.get(axis, axis.lower()): index for axis, index in indices.items() if sizes[axis] > 1}


def _pixel_size(image: Any) -> PixelSize | None:
    """The distance of neighbouring pixels, whose coordinates are in metres."""
    sides = []
    for axis in "YX":
        places = image.coords.get(axis)
        if places is None or len(places) < 2:
            return None
        sides.append(abs(float(places[-1] - places[0])) / (len(places) - 1) * MICROMETRES["m"])
    return PixelSize(sides[0], sides[1], "LIF")
