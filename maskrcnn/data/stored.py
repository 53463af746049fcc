"""A picture as stored in a file, read by region: what every reader returns, and what they have in common."""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskrcnn.data.pixel_size import PixelSize
from maskrcnn.errors import InputError

Array = npt.NDArray[Any]

ReadRegion = Callable[[int, int, int, int], Array]
"""(top, left, height, width) -> pixels [height, width] or [height, width, channels], of any dtype and byte order."""

SMALL = 1 << 28
"""Bytes of pixels that the header of any file may claim."""

HIGHEST_COMPRESSION = 50_000
"""Maximum compression factor of larger pictures: a blank one is compressed by 1000 with zlib or JPEG, 40,000 with
zstd."""


BLOCK_CACHE = 256 << 20
"""Bytes of decoded strips, tiles, chunks or frames to cache per open file: neighbouring regions share them."""


@dataclass(frozen=True)
class Level:
    """A copy of a picture with fewer pixels, from the file's pyramid."""

    read: ReadRegion
    size: tuple[int, int]


@dataclass(frozen=True)
class StoredPicture:
    """One picture of a file.

    Attributes:
        read: reads a region; raises InputError if the file is damaged.
        size: (H, W) in pixels.
        path: the file that holds the picture: for pages of a multi-file OME-TIFF, not always the file that was opened.
        name: the file's name; for one of several pictures with its place, ``plate.zarr#B03_f2_t0``.
        page: index of its page in ``path``, or of its plane in an OME-Zarr image.
        place: what tells the picture from the others of its file: well, field (f), scene (s), position (p), time (t),
            depth (z), numbered from 0; for pages of unknown meaning their number from 1; "" for the only picture.
        levels: copies with fewer pixels, the largest first.
        pixel_size: of ``read``'s pixels, as the file gives it; None if it does not.
        channels: names of the channels in the file, () if it gives none.
    """

    read: ReadRegion
    size: tuple[int, int]
    path: Path
    name: str
    page: int = 0
    place: str = ""
    levels: tuple[Level, ...] = ()
    pixel_size: PixelSize | None = None
    channels: tuple[str, ...] = ()

    def whole(self) -> Array:
        """All pixels, [H, W] or [H, W, channels]."""
        return self.read(0, 0, *self.size)

    def at_level(self, level: int) -> StoredPicture | None:
        """The copy at a level of the pyramid as a picture of its own; 0 is the picture itself, None: there is none."""
        if level == 0 or level > len(self.levels):
            return self if level == 0 else None
        coarse = self.levels[level - 1]
        y, x = scale_between(self.size, coarse.size)
        pixel_size = None if self.pixel_size is None else self.pixel_size.scaled(y, x)
        return replace(self, read=coarse.read, size=coarse.size, levels=self.levels[level:], pixel_size=pixel_size)


def scale_between(size: tuple[int, int], coarse: tuple[int, int]) -> tuple[float, float]:
    """How many pixels of a picture of ``size`` (H, W) one pixel of its ``coarse`` copy covers, by axis.

    Programs that halve a picture drop or add the last pixel of an odd side: if a whole number fits the sizes, it is
    that.
    """
    scales = []
    for full, few in zip(size, coarse, strict=True):
        whole = max(1, round(full / few))
        scales.append(float(whole) if abs(full - few * whole) < whole else full / few)
    return scales[0], scales[1]


def place_of(**indices: int | None) -> str:
    """The place of a picture by the names of its axes: ``place_of(t=0, z=3)`` is ``t0_z3``; None is left out."""
    return "_".join(f"{axis}{index}" for axis, index in indices.items() if index is not None)


def named(pictures: Sequence[StoredPicture], path: Path) -> list[StoredPicture]:
    """The pictures of a file named by their places; a single one has none."""
    if len(pictures) == 1:
        return [replace(pictures[0], name=path.name, place="")]
    return [replace(picture, name=f"{path.name}#{picture.place}") for picture in pictures]


def needed(module: str, extra: str, path: Path) -> Any:
    """Import the library that reads ``path``, which an extra of this package installs.

    Raises InputError, with the command that installs it, if it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.split(".")[0]
        raise InputError(
            f"{path}: its format is read with {library}, which is not installed or cannot be loaded ({error}); "
            f"pip install 'maskrcnn[{extra}]'"
        ) from error


@dataclass
class BlockCache:
    """Blocks of pixels that were decoded, up to :data:`BLOCK_CACHE` bytes; the least recently used ones go first."""

    blocks: OrderedDict[Hashable, Array] = field(default_factory=OrderedDict)
    size: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def get(self, key: Hashable, decode: Callable[[], Array | None]) -> Array | None:
        """The block ``key``, decoded if it is not in the cache, by one thread at a time; None, which is not cached, for
        a hole."""
        with self.lock:
            if key in self.blocks:
                self.blocks.move_to_end(key)
                return self.blocks[key]
            block = decode()
            if block is not None:
                self.blocks[key] = block
                self.size += block.nbytes
                while self.size > BLOCK_CACHE and len(self.blocks) > 1:
                    self.size -= self.blocks.popitem(last=False)[1].nbytes
            return block


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any exception in the block into an InputError that names the file: each codec has its own exceptions."""
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        yield
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(f"{path}: not a picture that can be read: {reason}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a picture that can be read (damaged or another format): {reason}") from error


def check_claim(path: Path, size: tuple[int, int], bytes_per_pixel: float, file_size: int) -> None:
    """Raise InputError if the size in a header is 0, or larger than a file of ``file_size`` bytes can hold, before
    memory is allocated."""
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"{path}: {height}x{width} pixels by its header, expected at least one")
    if height * width * bytes_per_pixel > max(SMALL, HIGHEST_COMPRESSION * file_size):
        raise InputError(
            f"{path}: {height}x{width} pixels by its header, more than a file of {file_size} bytes can hold"
        )


def check_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless the dtype is integer or float."""
    if dtype.kind not in "buif":
        raise InputError(f"{path}: pixels of type {dtype}, expected integers or floats")
