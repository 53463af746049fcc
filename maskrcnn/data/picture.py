"""Reading of pictures by region, so that a slide of 50,000 x 50,000 pixels is never in memory as a whole.

Training and prediction both read pixels through this module. A file holds one picture, or several pages or scenes that
are separate pictures. TIFFs are decoded strip by strip or tile by tile (any compression, BigTIFF, OME-TIFF, a pyramid
level); PNG and JPEG are decoded whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.data.colours import chosen_channels, pick
from maskrcnn.data.intensities import percentiles_of, stretch
from maskrcnn.data.reader import only_picture, open_stored
from maskrcnn.data.stored import Array, ReadRegion
from maskrcnn.errors import InputError

DEFAULT_PERCENTILES = (0.1, 99.9)
"""Default intensity range: cuts off hot pixels, but keeps the range of a small bright cell in a dark picture."""

BAND = 1 << 21
"""Number of pixels to read at a time when a whole picture is processed."""


class Picture:
    """A picture that is read by region as RGB in 0..255; grey becomes three equal channels.

    Intensities between two percentiles are stretched linearly to 0..255. The percentiles are those of the whole picture
    and of all colour channels together (which keeps the hue), as :func:`numpy.percentile` computes them with
    ``inverted_cdf``; if they are equal, the picture's minimum and maximum are used. With percentiles None, 8-bit values
    are unchanged, other integers are scaled from the range of their type, and floats from the picture's minimum and
    maximum.

    Attributes:
        name: the file's name; for a page of a stack with its number from 1, ``stack.tif#2``.
        path: the file that holds the picture: for pages of a multi-file OME-TIFF, not always the file that was opened.
        size: (H, W) in pixels.
    """

    def __init__(
        self, path: Path, name: str, size: tuple[int, int], read: ReadRegion, percentiles: tuple[float, float] | None
    ) -> None:
        self.path, self.name, self.size = path, name, size
        self._read, self._percentiles = read, percentiles
        self._range: tuple[float, float] | None = None
        self._table: npt.NDArray[np.uint8] | None = None

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Read a region as uint8 [height, width, 3].

        The first call reads the whole picture once if intensities are stretched between percentiles.

        Raises:
            InputError: the file is damaged, or holds pixels that are not finite.
            ValueError: the region is not inside the picture.
        """
        pixels = self.raw(top, left, height, width)
        if pixels.dtype == bool:
            values = pixels.astype(np.uint8) * np.uint8(255)
        elif self._percentiles is None and pixels.dtype == np.uint8:
            values = pixels.copy()  # never a view of the caller's array
        else:
            if self._range is None:
                self._range = self._find_range(pixels.dtype)
            if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
                if self._table is None:
                    self._table = stretch(np.arange(np.iinfo(pixels.dtype).max + 1), *self._range)
                values = self._table.take(pixels)
            else:
                values = stretch(pixels, *self._range)
        if values.ndim == 2:
            values = np.repeat(values[:, :, None], 3, axis=2)
        return torch.from_numpy(np.ascontiguousarray(values))

    def reduced(self, longest_side: int) -> npt.NDArray[np.uint8]:
        """The whole picture as uint8 [h, w, 3], reduced by an integer factor to sides of at most ``longest_side``."""
        factor = -(-max(self.size) // longest_side)
        rows = max(1, BAND // (self.size[1] * factor)) * factor
        bands = (
            Image.fromarray(self.read(top, 0, min(rows, self.size[0] - top), self.size[1]).numpy()).reduce(factor)
            for top in range(0, self.size[0], rows)
        )
        return np.concatenate([np.asarray(band) for band in bands])

    def rescaled(self, factor: float) -> Picture:
        """The picture resized by ``factor`` (above 1: enlarged), also read by region.

        Bilinear with antialiasing, as for training crops. Pixels do not depend on the region that is read.
        """
        size = max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor))
        return self if size == self.size else _RescaledPicture(self, size)

    def raw(self, top: int, left: int, height: int, width: int) -> Array:
        """Read a region with its values as stored, [height, width] or [height, width, 3], of any dtype.

        Raises the same errors as :meth:`read`.
        """
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"{self.name}: region {top, left, height, width} of a picture of {self.size}")
        pixels = _native(self._read(top, left, height, width))
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise InputError(f"{self.path}: holds NaN or infinite pixels, expected finite values")
        return pixels

    def _bands(self) -> Iterator[Array]:
        height, width = self.size
        rows = max(1, BAND // width)
        for top in range(0, height, rows):
            yield self.raw(top, 0, min(rows, height - top), width)

    def _find_range(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """The values that become 0 and 255."""
        if self._percentiles is None:
            if dtype.kind in "ui":
                return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
            low, high = percentiles_of(self._bands, (0, 100))
            return low, high
        low, high = percentiles_of(self._bands, self._percentiles)
        if low == high:
            low, high = percentiles_of(self._bands, (0, 100))
        return low, high


def _native(pixels: Array) -> Array:
    """Convert to native byte order and floats of at most 64 bits, as intensity arithmetic requires."""
    wide = pixels.dtype.kind == "f" and pixels.dtype.itemsize > 8
    return pixels.astype(np.float64 if wide else pixels.dtype.newbyteorder("="), copy=False)


class _RescaledPicture(Picture):
    """A resized picture; each region is resampled from the corresponding region of the original."""

    def __init__(self, original: Picture, size: tuple[int, int]) -> None:
        super().__init__(original.path, original.name, size, self._read_original, None)
        self._original = original

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """See :meth:`Picture.read`; the stretched intensities are those of the original."""
        return torch.from_numpy(self.raw(top, left, height, width).copy())

    def _read_original(self, top: int, left: int, height: int, width: int) -> Array:
        original = self._original
        y1, y2, window_top, window_bottom = _source_range(top, height, self.size[0], original.size[0])
        x1, x2, window_left, window_right = _source_range(left, width, self.size[1], original.size[1])
        pixels = Image.fromarray(original.read(y1, x1, y2 - y1, x2 - x1).numpy())
        window = (window_left, window_top, window_right, window_bottom)  # fractional, in pixels of what was read
        return np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR, box=window))


def _source_range(start: int, length: int, size: int, original: int) -> tuple[int, int, float, float]:
    """The source pixels of a region along one axis: first and end (exclusive) in the original, and where between them
    the region ``start`` .. ``start + length`` of the resized picture of ``size`` pixels begins and ends."""
    step = original / size
    low, high = start * step, min((start + length) * step, original)
    margin = max(1.0, step) + 1  # support of the triangle filter beyond the window
    first, last = max(0, int(low - margin)), min(original, int(high + margin) + 1)
    return first, last, low - first, high - first


def open_pictures(
    path: str | os.PathLike[str],
    percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
    level: int = 0,
    channels: Sequence[int] | None = None,
) -> list[Picture]:
    """Open the pictures of a file: one, or one per page of a stack (time, depth or unnamed axis) and per scene.

    Args:
        path: TIFF, PNG, JPEG or JPEG 2000.
        percentiles: see :class:`Picture`.
        level: pyramid level; 0 is the full size.
        channels: the file's channels (from 0) to use as red, green and blue; a single one becomes grey, with two, blue
            is black. None: grey or RGB, without alpha.

    Raises:
        InputError: the file is missing or damaged or has unknown axes; it has no such level or channel; it has two,
            four or more channels and none were chosen.
    """
    pictures = open_stored(path, level, channels)
    return [Picture(stored.path, stored.name, stored.size, stored.read, percentiles) for stored in pictures]


def read_image(
    path: str | os.PathLike[str],
    percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
    channels: Sequence[int] | None = None,
) -> Tensor:
    """Read a file with a single picture as RGB, uint8 [H, W, 3].

    The pixels are those of :func:`open_pictures`, with the same arguments and errors; a file with several pictures
    raises InputError too.
    """
    stored = only_picture(path, channels)
    picture = _in_memory(stored.whole(), stored.path, stored.name, percentiles)
    return picture.read(0, 0, *picture.size)


def picture_of(
    array: npt.ArrayLike | Tensor,
    percentiles: tuple[float, float] | None,
    name: str = "image",
    channels: Sequence[int] | None = None,
) -> Picture:
    """Make a :class:`Picture` of an array [H, W], [H, W, 3] or [H, W, 4] of integers or floats.

    Args:
        array: an array in any byte order, a tensor on any device, or array-like. The last of four channels is alpha.
        percentiles: see :class:`Picture`.
        name: for messages.
        channels: see :func:`open_pictures`; if given, ``array`` may have any number of channels.

    Raises:
        InputError: for another shape or dtype, no pixels, values that are not finite, or a missing channel.
    """
    array = _to_numpy(array, name)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(f"{name}: an array of shape {array.shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    pixels = array if array.ndim == 3 else array[:, :, None]
    count = pixels.shape[2]
    if channels is None and count not in (1, 3, 4):
        raise InputError(f"{name}: an array of shape {array.shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise InputError(f"{name}: an array of {array.dtype}, expected integers or finite floats")
    pixels = pick(pixels, chosen_channels(count, count == 4, channels, Path(name)))
    return _in_memory(pixels, Path(name), name, percentiles)


def _to_numpy(values: npt.ArrayLike | Tensor, name: str) -> Array:
    try:
        if not isinstance(values, Tensor):
            return np.asarray(values)
        narrow = values.is_floating_point() and values.dtype.itemsize <= 2  # NumPy has neither bfloat16 nor float8
        array: Array = (values.detach().float() if narrow else values.detach()).cpu().numpy()
    except (RuntimeError, TypeError, ValueError) as error:  # sparse, quantized or meta tensors; ragged lists
        kind = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise InputError(f"{name}: {kind} that NumPy cannot hold, expected an array of integers or floats") from error
    return array


def _in_memory(array: Array, path: Path, name: str, percentiles: tuple[float, float] | None) -> Picture:
    def read(top: int, left: int, height: int, width: int) -> Array:
        return array[top : top + height, left : left + width]

    return Picture(path, name, (array.shape[0], array.shape[1]), read, percentiles)
