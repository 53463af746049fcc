"""Decoding files and label masks: TIFF as microscopes and image tools write it, and PNG or JPEG.

Whatever is wrong with a file comes out as one :class:`~maskrcnn.errors.InputError` that names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.errors import InputError

Image.MAX_IMAGE_PIXELS = None  # slides are large, no decompression bombs

Array = npt.NDArray[Any]

MAX_ID = 2**31 - 1
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHANNEL_AXES = "SCQ"  # samples, channels, and tifffile's name for an axis that the file does not explain


def read_mask(path: str | os.PathLike[str]) -> Tensor:
    """Read a label mask: one instance id a pixel, 0 = background, gaps allowed, stored as integers or as floats.

    Returns:
        int32 [H, W].

    Raises:
        InputError: for a file that cannot be read, more than one channel, or ids that are negative, fractional, NaN
            or above 2^31 - 1.
    """
    values = decode(Path(path), colour=False)
    if values.ndim != 2:
        raise InputError(f"{path}: {values.shape[2]} channels, expected one instance id a pixel")
    with np.errstate(invalid="ignore"):
        ids = values.astype(np.int32)
        exact = np.array_equal(ids, values) and (ids.size == 0 or ids.min() >= 0)
    if not exact:
        raise InputError(f"{path}: {_what_is_wrong(values)}, expected instance ids 0, 1, 2, ... up to {MAX_ID}")
    return torch.from_numpy(np.ascontiguousarray(ids))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in pixels, from the file's header, without decoding the picture."""
    path = Path(path)
    with readable(path):
        if is_tiff(path):
            with tifffile.TiffFile(path) as tiff:
                series = _first_series(tiff, path)
                height, width = (series.shape[series.axes.index(axis)] for axis in "YX")
        else:
            with Image.open(path) as picture:
                width, height = picture.size
    return int(height), int(width)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Name the file in whatever a decoder raises: each codec has its own exceptions for a damaged file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a picture that can be read (damaged or another format): {reason}") from error


def is_tiff(path: Path) -> bool:
    """Whether the file begins as TIFFs do, whatever its name."""
    with path.open("rb") as file:
        return file.read(4) in _TIFF_MAGIC


def decode(path: Path, colour: bool) -> Array:
    """The pixels as stored, [H, W] or [H, W, channels]; ``colour`` resolves palettes and inverted greys."""
    with readable(path):
        pixels = _decode_tiff(path, colour) if is_tiff(path) else decode_pillow(path, colour)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if 0 in pixels.shape:
        raise InputError(f"{path}: has no pixels")
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{path}: pixels of type {pixels.dtype}, expected integers or floats")
    return pixels


def _decode_tiff(path: Path, colour: bool) -> Array:
    with tifffile.TiffFile(path) as tiff:
        series = _first_series(tiff, path)
        check_complete(series, path)
        pixels = series.asarray()
        axes = "".join(a for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX")
        pixels = pixels.reshape([n for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"])
        if len(axes) == 3 and axes.index("Y") == 1:
            pixels = np.moveaxis(pixels, 0, 2)
        return resolve_photometric(pixels, series.keyframe, path) if colour else pixels


def check_complete(series: Any, path: Path) -> None:
    """Raise InputError for a truncated file: some codecs fill what it lacks with zeros, without a word."""
    for page in series.pages:
        if page is None:
            raise InputError(f"{path}: a page is in another file of its OME set, which is missing")
        ends = (o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > page.parent.filehandle.size:  # pages of an OME set lie in several files
            raise InputError(f"{path}: truncated, its last pixels lie behind the end of the file")


def _first_series(tiff: tifffile.TiffFile, path: Path) -> Any:
    """The file's picture: its first series of pages, if that is one picture of known axes and the largest."""
    if not tiff.series:
        raise InputError(f"{path}: a TIFF without a picture")
    series = tiff.series[0]
    axes = [a for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"]
    extra = [a for a in axes if a not in "YX"]
    if "Y" not in axes or "X" not in axes or len(extra) > 1 or axes[-3:].index("Y") > axes[-3:].index("X"):
        raise InputError(f"{path}: axes {series.axes} of size {series.shape}, expected one picture of height x width")
    if extra and (extra[0] not in _CHANNEL_AXES or series.shape[series.axes.index(extra[0])] > 4):
        count = series.shape[series.axes.index(extra[0])]
        raise InputError(f"{path}: {count} pages or channels (axes {series.axes}), expected one grey or RGB picture")
    if any(other.size > series.size for other in tiff.series[1:]):
        raise InputError(f"{path}: {len(tiff.series)} pictures, the first is not the largest, expected one picture")
    return series


def resolve_photometric(pixels: Array, page: Any, path: Path) -> Array:
    """Palettes to RGB, and inverted greys to rising ones (floats to their negatives); other colours than RGB raise."""
    kind = page.photometric
    if kind == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        return (np.moveaxis(page.colormap, 0, 1)[pixels] >> 8).astype(np.uint8)
    if kind == tifffile.PHOTOMETRIC.MINISWHITE:
        if pixels.dtype == bool:
            return ~pixels
        return -pixels if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max - pixels
    if kind in (tifffile.PHOTOMETRIC.SEPARATED, tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB):
        raise InputError(f"{path}: colours stored as {kind.name}, expected grey or RGB")
    return pixels


def decode_pillow(path: Path, colour: bool) -> Array:
    """The pixels of a PNG or JPEG, [H, W] or [H, W, channels]; ``colour`` resolves palettes."""
    with Image.open(path) as picture:
        if colour and picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
            return np.asarray(picture.convert("RGB"))
        return np.asarray(picture)


def check_channels(channels: Sequence[int] | None) -> None:
    """Raises InputError unless there are one to three, from 0."""
    if channels is not None and not 1 <= len(channels) <= 3:
        raise InputError(f"--channels: {len(channels)} given, expected one to three")
    if channels is not None and min(channels) < 0:
        raise InputError(f"--channels: {min(channels)} given, expected 0 or more")


def chosen_channels(count: int, channels: Sequence[int] | None, path: Path) -> list[int]:
    """The channels to be shown: those asked for, or of grey (with alpha) the first and of RGB (with alpha) three."""
    if channels is None:
        if count > 4:
            raise InputError(f"{path}: {count} channels; choose one to three of them with --channels (from 0)")
        return [0] if count <= 2 else [0, 1, 2]
    if wrong := [channel for channel in channels if not 0 <= channel < count]:
        raise InputError(f"--channels: {path} has the channels 0 to {count - 1}, no {wrong[0]}")
    return list(channels)


def as_colours(pixels: Array) -> Array:
    """[h, w, 1] -> [h, w]; two channels get a black third."""
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    if pixels.shape[2] == 2:
        return np.concatenate([pixels, np.zeros_like(pixels[:, :, :1])], axis=2)
    return pixels


def _what_is_wrong(values: Array) -> str:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "holds NaN or infinite ids"
    if values.min() < 0:
        return f"holds the negative id {values.min():g}"
    if values.max() > MAX_ID:
        return f"holds the id {values.max():g}"
    return f"holds the fractional id {values[values != np.floor(values)][0]:g}"
