"""The single entry point for reading pictures and label masks, in training and in prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.colours import check_channels
from maskrcnn.data.raster import open_raster
from maskrcnn.data.stored import Array, StoredPicture, readable
from maskrcnn.data.tiff import is_tiff, open_tiff
from maskrcnn.errors import InputError

MAX_ID = 2**31 - 1


def open_stored(
    path: str | os.PathLike[str], level: int = 0, channels: Sequence[int] | None = None, colours: bool = True
) -> list[StoredPicture]:
    """Open the pictures of a file; only headers are read, nothing is decoded until a region is read.

    Args:
        path: TIFF, PNG, JPEG or JPEG 2000.
        level: pyramid level; 0 is the full size.
        channels: the channels to use as red, green and blue; None: grey or RGB, without alpha.
        colours: False returns all channels with their values as stored, as needed for label masks.

    Raises:
        InputError: the file is missing or damaged or has another format; it has no such level or channel.
    """
    path = Path(path)
    check_channels(channels)
    with readable(path):
        if is_tiff(path):
            return open_tiff(path, level, channels, colours)
        if level != 0:
            raise InputError(f"--level is {level}; {path} has one level, 0")
        return [open_raster(path, channels, colours)]


def only_picture(
    path: str | os.PathLike[str], channels: Sequence[int] | None = None, colours: bool = True
) -> StoredPicture:
    """Open a file that must hold exactly one picture; see :func:`open_stored`."""
    first, *others = open_stored(path, channels=channels, colours=colours)
    if others:
        raise InputError(f"{path}: {1 + len(others)} pictures (pages or scenes), expected one")
    return first


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in pixels, from the file's header, without decoding the picture."""
    return only_picture(path, colours=False).size


def read_mask(path: str | os.PathLike[str]) -> Tensor:
    """Read a label image: one instance id per pixel, 0 for background, stored as integers or floats; ids may have gaps.

    Returns:
        int32 [H, W].

    Raises:
        InputError: the file cannot be read or has several channels, or an id is negative, fractional, NaN or above
            2^31 - 1.
    """
    values = only_picture(path, colours=False).whole()
    if values.ndim != 2:
        raise InputError(f"{path}: {values.shape[2]} channels, expected one instance id per pixel")
    with np.errstate(invalid="ignore"):
        ids = values.astype(np.int32)
        exact = np.array_equal(ids, values) and (ids.size == 0 or ids.min() >= 0)
    if not exact:
        raise InputError(f"{path}: {_describe_invalid_id(values)}, expected instance ids 0, 1, 2, ... up to {MAX_ID}")
    return torch.from_numpy(np.ascontiguousarray(ids))


def _describe_invalid_id(values: Array) -> str:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "holds NaN or infinite ids"
    if values.min() < 0:
        return f"holds the negative id {values.min():g}"
    if values.max() > MAX_ID:
        return f"holds the id {values.max():g}"
    return f"holds the fractional id {values[values != np.floor(values)][0]:g}"
