"""Reading pictures and label masks: TIFF as microscopes and image tools write it, and PNG or JPEG.

Whatever is wrong with a file comes out as one :class:`~maskrcnn.errors.InputError` that names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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

DEFAULT_PERCENTILES = (0.1, 99.9)
"""The project's intensity range: cuts hot pixels, keeps what a small bright cell in a dark picture has."""

MAX_ID = 2**31 - 1
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHANNEL_AXES = "SCQ"  # samples, channels, and tifffile's name for an axis that the file does not explain


def read_image(path: str | os.PathLike[str], percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES) -> Tensor:
    """Read a picture as RGB.

    Grey becomes three equal channels; an alpha channel is dropped, whatever it holds (an HW3 picture has one of
    constant 255 that its header does not declare).

    Args:
        path: a TIFF (any compression, 8 or 16 bit, integer or float), PNG or JPEG.
        percentiles: the intensities between these two percentiles of all colour channels together (so that the hue
            stays) are stretched to 0..255; the values that :func:`numpy.percentile` gives with ``inverted_cdf``. Where
            they coincide, the picture's minimum and maximum take their place. ``None`` takes 8-bit values as they are
            and scales other integers from their type's whole range, floats from the picture's minimum to its maximum.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: for a missing, truncated or foreign file, several pages, or a channel count other than 1 to 4.
    """
    pixels = _drop_alpha(_decode(Path(path), colour=True), path)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError(f"{path}: holds NaN or infinite pixels, expected finite values")
    return _rgb(_to_uint8(pixels, percentiles))


def _rgb(image: npt.NDArray[np.uint8]) -> Tensor:
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(image))


def read_mask(path: str | os.PathLike[str]) -> Tensor:
    """Read a label mask: one instance id a pixel, 0 = background, gaps allowed, stored as integers or as floats.

    Returns:
        int32 [H, W].

    Raises:
        InputError: for a file that cannot be read, more than one channel, or ids that are negative, fractional, NaN
            or above 2^31 - 1.
    """
    values = _decode(Path(path), colour=False)
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


def _decode(path: Path, colour: bool) -> Array:
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


def _drop_alpha(pixels: Array, path: str | os.PathLike[str]) -> Array:
    if pixels.ndim == 2:
        return pixels
    channels = pixels.shape[2]
    if channels > 4:
        raise InputError(f"{path}: {channels} channels, expected grey, RGB or RGBA")
    return pixels[:, :, 0] if channels == 2 else pixels[:, :, :3]


def _to_uint8(pixels: Array, percentiles: tuple[float, float] | None) -> npt.NDArray[np.uint8]:
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    whole_range = pixels.dtype.kind in "ui" and percentiles is None
    if whole_range and pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype in (np.uint8, np.uint16):
        # A table over the values costs one pass over the pixels, where a sort for the percentiles would take many.
        table = np.arange(np.iinfo(pixels.dtype).max + 1)
        counts = np.bincount(pixels.reshape(-1), minlength=len(table))
        low, high = (0, len(table) - 1) if percentiles is None else _range_of_counts(counts, percentiles)
        return stretch(table, low, high)[pixels]
    if whole_range:
        info = np.iinfo(pixels.dtype)
        return stretch(pixels, info.min, info.max)
    low, high = pixels.min(), pixels.max()
    if percentiles is not None:
        inner = np.percentile(pixels, percentiles, method="inverted_cdf")
        if inner[0] < inner[1]:
            low, high = inner
    return stretch(pixels, float(low), float(high))


def _range_of_counts(counts: npt.NDArray[np.int64], percentiles: tuple[float, float]) -> tuple[int, int]:
    cumulative = np.cumsum(counts)
    ranks = np.maximum(np.ceil(np.asarray(percentiles) / 100 * cumulative[-1]), 1)
    low, high = np.searchsorted(cumulative, ranks)
    if low == high:
        low, high = np.flatnonzero(counts)[[0, -1]]
    return int(low), int(high)


def stretch(values: Array, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map low..high to 0..255, clipped and rounded; a picture of one value becomes black."""
    # float32 holds an 8- or 16-bit value exactly; wider ones need float64 until the range is subtracted.
    wide: Any = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scale = 255 / (high - low) if high > low else 0.0
    return np.clip(np.rint((values.astype(wide) - wide(low)) * wide(scale)), 0, 255).astype(np.uint8)


def _what_is_wrong(values: Array) -> str:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "holds NaN or infinite ids"
    if values.min() < 0:
        return f"holds the negative id {values.min():g}"
    if values.max() > MAX_ID:
        return f"holds the id {values.max():g}"
    return f"holds the fractional id {values[values != np.floor(values)][0]:g}"
