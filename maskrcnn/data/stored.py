"""A picture as stored in a file, read by region, and checks that turn damaged files into InputError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskrcnn.errors import InputError

Array = npt.NDArray[Any]

ReadRegion = Callable[[int, int, int, int], Array]
"""(top, left, height, width) -> pixels [height, width] or [height, width, channels], of any dtype and byte order."""

SMALL = 1 << 28
"""Bytes of pixels that the header of any file may claim."""

HIGHEST_COMPRESSION = 50_000
"""Maximum compression factor of larger pictures: a blank one is compressed by 1000 with zlib or JPEG, 40,000 with
zstd."""


@dataclass(frozen=True)
class StoredPicture:
    """One picture of a file.

    Attributes:
        read: reads a region; raises InputError if the file is damaged.
        size: (H, W) in pixels.
        path: the file that holds the picture: for pages of a multi-file OME-TIFF, not always the file that was opened.
        name: the file's name; for one of several pictures with its number from 1, ``stack.tif#2``.
        page: index of its page in ``path``.
    """

    read: ReadRegion
    size: tuple[int, int]
    path: Path
    name: str
    page: int = 0

    def whole(self) -> Array:
        """All pixels, [H, W] or [H, W, channels]."""
        return self.read(0, 0, *self.size)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any exception in the block into an InputError that names the file: each codec has its own exceptions."""
    try:
        if not path.is_file():
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
