"""A picture as a file stores it, read by region, and the errors of files that cannot be read so."""

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
"""(top, left, height, width) -> pixels [height, width] or [height, width, channels], of any type and byte order."""

SMALL = 1 << 28
"""Bytes of pixels that any file may claim to hold."""

HIGHEST_COMPRESSION = 50_000
"""No larger picture is smaller by more than this in its file: a blank one is by 1000 with zlib or JPEG, by 40,000 with
zstd."""


@dataclass(frozen=True)
class StoredPicture:
    """One picture of a file.

    Attributes:
        read: gives a region; raises InputError where the file is damaged.
        size: (H, W) in pixels.
        path: the file that holds it: of pages of an OME set, not always the one that was opened.
        name: the file's name; of one of several pictures with its number, ``stack.tif#2``, from 1.
        page: its place among that file's pages, from 0.
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
    """Name the file in whatever a decoder raises: each codec has its own exceptions for a damaged file."""
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
    """Raise InputError for a header whose picture has no pixels, or more than a file of ``file_size`` bytes can hold:
    before memory is allocated for them."""
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"{path}: {height}x{width} pixels by its header, expected at least one")
    if height * width * bytes_per_pixel > max(SMALL, HIGHEST_COMPRESSION * file_size):
        raise InputError(
            f"{path}: {height}x{width} pixels by its header, more than a file of {file_size} bytes can hold"
        )


def check_type(path: Path, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless pixels of the type are numbers that can be shown as intensities."""
    if dtype.kind not in "buif":
        raise InputError(f"{path}: pixels of type {dtype}, expected integers or floats")
