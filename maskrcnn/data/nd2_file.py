"""Reads Nikon's ND2 with the library nd2: one picture per position, time and depth, by frame."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.colours import channels_to_read, pick
from maskrcnn.data.pixel_size import PixelSize
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

_MAGIC = (b"\xda\xce\xbe\x0a", b"\0\0\0\x0cjP  \r\n\x87\n")


def is_nd2(path: Path) -> bool:
    """Whether the file is an ND2: by its signature; the legacy format's is JPEG 2000's, so its ending counts."""
    with path.open("rb") as file:
        start = file.read(12)
    return start.startswith(_MAGIC[0]) or (path.suffix.lower() == ".nd2" and start == _MAGIC[1])


def open_nd2(path: Path, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """Open the pictures of an ND2.

    Uncompressed frames are mapped, so that a region reads its own bytes; compressed ones are decoded whole, and cached.

    Args:
        path: the file.
        channels: the channels to use; None: grey or RGB.
        colours: False returns all channels with their values as stored.

    Raises:
        InputError: the file is damaged, nd2 is not installed, or :func:`channels_to_read` raises it.
    """
    with readable(path):
        file = needed("nd2", "nd2", path).ND2File(path)
        cache = BlockCache()
        weakref.finalize(cache, file.close)  # with the last picture
        check_type(path, file.dtype)
        sizes = file.sizes
        size = sizes["Y"], sizes["X"]
        count = sizes.get("C", 1) * sizes.get("S", 1)
        chosen = channels_to_read(count, channels, path, colours)

        def frame(index: int) -> Array:
            """A frame as [Y, X, channels]; a view where the file is mapped."""
            pixels = np.asarray(file.read_frame(index)).reshape(sizes.get("C", 1), *size, sizes.get("S", 1))
            return pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2).reshape(*size, count)

        def reader(index: int) -> ReadRegion:
            def read(top: int, left: int, height: int, width: int) -> Array:
                with readable(path):
                    whole = cache.get(index, lambda: frame(index))
                assert whole is not None
                pixels = whole[top : top + height, left : left + width]
                return pick(pixels, chosen) if colours or count == 1 else pixels

            return read

        places = [place_of(**_loops(indices, sizes)) for indices in file.loop_indices] or [""]
        pixel_size = _pixel_size(file)
        names = tuple(channel.channel.name for channel in file.metadata.channels or ()) if file.metadata else ()
        return named(
            [
                StoredPicture(reader(index), size, path, path.name, index, place, (), pixel_size, names)
                for index, place in enumerate(places)
            ],
            path,
        )


def _loops(indices: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
    """Position, time and depth of a frame in this order, then other loops; without loops of one frame."""
    order = sorted(indices, key=lambda axis: ("PTZ" + axis).index(axis))
    return {axis.lower(): indices[axis] for axis in order if sizes.get(axis, 1) > 1}


def _pixel_size(file: Any) -> PixelSize | None:
    """The size of a pixel; nd2 gives 1 micrometre for a microscope that was not calibrated."""
    channels = file.metadata.channels if file.metadata else None
    if not channels or not all(channels[0].volume.axesCalibrated[:2]):
        return None
    voxel = file.voxel_size()
    return PixelSize(voxel.y, voxel.x, "ND2")
