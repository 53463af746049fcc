"""The single entry point for reading pictures and label masks, in training and in prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data import lif, slide
from maskrcnn.data.colours import check_channels
from maskrcnn.data.czi import is_czi, open_czi
from maskrcnn.data.nd2_file import is_nd2, open_nd2
from maskrcnn.data.ngff import is_zarr
from maskrcnn.data.ome_zarr import open_zarr
from maskrcnn.data.pixel_size import PixelSize
from maskrcnn.data.raster import open_raster
from maskrcnn.data.stored import Array, StoredPicture, readable
from maskrcnn.data.tiff import is_tiff, open_tiff
from maskrcnn.errors import InputError

MAX_ID = 2**31 - 1


def open_stored(
    path: str | os.PathLike[str],
    level: int = 0,
    channels: Sequence[int] | None = None,
    colours: bool = True,
    pixel_size: PixelSize | None = None,
) -> list[StoredPicture]:
    """Open the pictures of a file; only headers are read, nothing is decoded until a region is read.

    Args:
        path: TIFF and the slides that are TIFFs, PNG, JPEG, JPEG 2000 and Pillow's other formats; with libraries that
            extras of this package install also OME-Zarr, CZI, ND2, LIF and MRXS (docs/formats.md). One of several
            pictures by its name: ``plate.zarr#B03_f2_t0``.
        level: pyramid level; 0 is the full size. Pictures without that level are left out.
        channels: the channels to use as red, green and blue; None: grey or RGB, without alpha.
        colours: False returns all channels with their values as stored, as needed for label masks.
        pixel_size: of level 0, instead of what the file says.

    Raises:
        InputError: the file is missing or damaged or has another format; it has no such level or channel; its format
            needs a library that is not installed.
    """
    path, place = split_place(Path(path))
    check_channels(channels)
    with readable(path):
        pictures = _open(path, channels, colours)
    if place:
        pictures = _at_place(path, place, pictures)
    if pixel_size is not None:
        pictures = [replace(picture, pixel_size=pixel_size) for picture in pictures]
    found = [copy for copy in (picture.at_level(level) for picture in pictures) if copy is not None]
    if level < 0 or not found:
        highest = max(len(picture.levels) for picture in pictures)
        levels = f"has the levels 0 to {highest}" if highest else "has one level, 0"
        raise InputError(f"--level is {level}; {path} {levels}")
    return found


def split_place(path: Path) -> tuple[Path, str]:
    """``plate.zarr`` and ``B03_f2_t0`` for ``plate.zarr#B03_f2_t0``, unless there is a file of that name."""
    name, mark, place = path.name.rpartition("#")
    return (path, "") if not mark or not name or os.path.exists(path) else (path.with_name(name), place)


def _at_place(path: Path, place: str, pictures: Sequence[StoredPicture]) -> list[StoredPicture]:
    """The picture of a file at a place; raises InputError if there is none."""
    found = [picture for picture in pictures if picture.place == place]
    if not found:
        places = ", ".join(picture.place for picture in pictures[:6]) if len(pictures) > 1 else "a single one"
        more = f", ... ({len(pictures)})" if len(pictures) > 6 else ""
        raise InputError(f"{path}: no picture {place}; it has {places}{more}")
    return found


def _open(path: Path, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """Open a file with the reader of its format: by its content where that tells, else by its ending."""
    if path.is_dir():
        if is_zarr(path):
            return open_zarr(path, channels, colours)
        raise InputError(f"{path}: a folder without Zarr metadata, expected a picture or an OME-Zarr")
    if is_tiff(path):
        return open_tiff(path, channels, colours)
    if is_czi(path):
        return open_czi(path, channels, colours)
    if is_nd2(path):
        return open_nd2(path, channels, colours)
    if path.suffix.lower() in lif.SUFFIXES:
        return lif.open_lif(path, channels, colours)
    if path.suffix.lower() in slide.SUFFIXES:
        return slide.open_slide(path, channels)
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
