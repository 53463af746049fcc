"""Reading of pictures by region, so that a slide of 50,000 x 50,000 pixels is never in memory as a whole.

Training and prediction both read pixels through this module. A file holds one picture, or several pages or scenes that
are separate pictures. TIFFs are decoded strip by strip or tile by tile (any compression, BigTIFF, OME-TIFF, a pyramid
level); PNG and JPEG are decoded whole. Where a file has a pyramid, reduced copies of a picture are made from the level
that is just large enough.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.data.intensities import percentiles_of, stretch
from maskrcnn.data.pixel_size import PixelSize, given_size
from maskrcnn.data.reader import only_picture, open_stored
from maskrcnn.data.stored import Array, Level, ReadRegion, StoredPicture, scale_between
from maskrcnn.errors import InputError

DEFAULT_PERCENTILES = (0.1, 99.9)
"""Default intensity range: cuts off hot pixels, but keeps the range of a small bright cell in a dark picture."""

_ROUNDING = 0.99
"""Fraction of the pixels of a side that a level may lack: scanners drop the last ones of a side that is odd."""

_EPSILON = 1e-6

BAND = 1 << 21
"""Number of pixels to read at a time when a whole picture is processed."""

OVERVIEW = 2048
"""Maximum side of an overview in pixels."""

EXACT = 1 << 26
"""Number of pixels above which intensities are taken from a level of the pyramid that has at least as many."""


class Picture:
    """A picture that is read by region as RGB in 0..255; grey becomes three equal channels.

    Intensities between two percentiles are stretched linearly to 0..255. The percentiles are those of the whole picture
    and of all colour channels together (which keeps the hue), as :func:`numpy.percentile` computes them with
    ``inverted_cdf``; if they are equal, the picture's minimum and maximum are used. With percentiles None, 8-bit values
    are unchanged, other integers are scaled from the range of their type, and floats from the picture's minimum and
    maximum. Of a picture with more than :data:`EXACT` pixels and a pyramid, they are those of the smallest level that
    has as many: a pass over a slide takes hours.

    Attributes:
        name: the file's name; for one of several pictures with its place, ``plate.zarr#B03_f2_t0``.
        path: the file that holds the picture: for pages of a multi-file OME-TIFF, not always the file that was opened.
        size: (H, W) in pixels.
        place, page: see :class:`maskrcnn.data.stored.StoredPicture`.
        pixel_size: size of the pixels in micrometres as the file gives it; None: unknown.
        levels: copies with fewer pixels and the same intensities, the largest first.
        intensities: the values that become 0 and 255; None until a region is read that needs them.
        colours: number of channels that were chosen: if two, the third of ``read`` and ``raw`` is black.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        size: tuple[int, int],
        read: ReadRegion,
        percentiles: tuple[float, float] | None,
        levels: Sequence[Level] = (),
        pixel_size: PixelSize | None = None,
        place: str = "",
        page: int = 0,
        colours: int = 3,
    ) -> None:
        self.colours = colours
        self.path, self.name, self.size = path, name, size
        self.pixel_size, self.place, self.page = pixel_size, place, page
        self._read, self._percentiles = read, percentiles
        self.levels: list[Picture] = [_CoarsePicture(self, level) for level in levels]
        self.intensities: tuple[float, float] | None = None
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
            low, high = self._range_of(pixels.dtype)
            if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
                if self._table is None:
                    self._table = stretch(np.arange(np.iinfo(pixels.dtype).max + 1), low, high)
                values = self._table.take(pixels)
            else:
                values = stretch(pixels, low, high)
        if values.ndim == 2:
            values = np.repeat(values[:, :, None], 3, axis=2)
        return torch.from_numpy(np.ascontiguousarray(values))

    def reduced(self, longest_side: int) -> npt.NDArray[np.uint8]:
        """The whole picture as uint8 [h, w, 3], reduced by an integer factor to sides of at most ``longest_side``, from
        the smallest level that is large enough."""
        source = [self, *(level for level in self.levels if max(level.size) >= longest_side)][-1]
        factor = -(-max(source.size) // longest_side)
        height, width = source.size
        rows = max(1, BAND // (width * factor)) * factor
        bands = (
            Image.fromarray(source.read(top, 0, min(rows, height - top), width).numpy()).reduce(factor)
            for top in range(0, height, rows)
        )
        return np.concatenate([np.asarray(band) for band in bands])

    @cached_property
    def overview(self) -> npt.NDArray[np.uint8]:
        """The picture :meth:`reduced` to sides of at most :data:`OVERVIEW` pixels; kept, since it may take a pass over
        the file. A rescaled picture has that of its original."""
        return self.reduced(OVERVIEW)

    def release(self) -> None:
        """Forget the overview, which takes up to 12 MB; it is made again when it is needed."""
        self.__dict__.pop("overview", None)

    def micrometres(self) -> float:
        """The side of a pixel in micrometres; raises InputError if the file gives none, or one that cannot be."""
        if self.pixel_size is None:
            raise InputError(f"{self.name}: its pixel size is not known; give it with --pixel-size, in micrometres")
        side = self.pixel_size.micrometres()
        if side is None:
            raise InputError(f"{self.name}: its pixels are {self.pixel_size.problem()}; give it with --pixel-size")
        return side

    def covering(self, size: tuple[int, int]) -> Picture:
        """The smallest level with at least ``size`` (H, W) pixels, rounding aside; the picture itself if none has."""
        need = [_ROUNDING * side for side in size]
        fits = (level for level in self.levels if level.size[0] >= need[0] and level.size[1] >= need[1])
        return [self, *fits][-1]

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

    def _range_of(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        """The values that become 0 and 255; found once."""
        if self.intensities is None:
            self.intensities = self._find_range(dtype)
        return self.intensities

    def _find_range(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        if self._percentiles is None and dtype.kind in "ui":
            return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
        source = [self, *(level for level in self.levels if level.size[0] * level.size[1] >= EXACT)][-1]
        low, high = percentiles_of(source._bands, self._percentiles or (0, 100))
        if low == high:
            low, high = percentiles_of(source._bands, (0, 100))
        return low, high


class _CoarsePicture(Picture):
    """A level of a picture's pyramid, with the intensity range of the whole."""

    def __init__(self, full: Picture, level: Level) -> None:
        super().__init__(full.path, full.name, level.size, level.read, full._percentiles)
        self._full = full

    def _find_range(self, dtype: np.dtype[Any]) -> tuple[float, float]:
        return self._full._range_of(dtype)


def _native(pixels: Array) -> Array:
    """Convert to native byte order and floats of at most 64 bits, as intensity arithmetic requires."""
    wide = pixels.dtype.kind == "f" and pixels.dtype.itemsize > 8
    return pixels.astype(np.float64 if wide else pixels.dtype.newbyteorder("="), copy=False)


class _RescaledPicture(Picture):
    """A resized picture; each region is resampled from the corresponding region of the original, or of the level of its
    pyramid that has enough pixels."""

    def __init__(self, original: Picture, size: tuple[int, int]) -> None:
        super().__init__(original.path, original.name, size, self._read_original, None)
        self._original = original
        self.levels = [level for level in original.levels if max(level.size) < max(size)]
        source = self._source = original.covering(size)
        scales = scale_between(original.size, source.size)
        self._steps = [full / (few * scale) for full, few, scale in zip(original.size, size, scales, strict=True)]

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """See :meth:`Picture.read`; the stretched intensities are those of the original."""
        return torch.from_numpy(self.raw(top, left, height, width).copy())

    @cached_property
    def overview(self) -> npt.NDArray[np.uint8]:
        return self._original.overview

    def _read_original(self, top: int, left: int, height: int, width: int) -> Array:
        source = self._source
        y1, y2, window_top, window_bottom = _source_range(top, height, self._steps[0], source.size[0])
        x1, x2, window_left, window_right = _source_range(left, width, self._steps[1], source.size[1])
        pixels = source.read(y1, x1, y2 - y1, x2 - x1).numpy()
        rows, columns = math.ceil(window_bottom) - (y2 - y1), math.ceil(window_right) - (x2 - x1)
        if max(rows, columns) > 0:  # the last pixels of a side, which the level dropped
            pixels = np.pad(pixels, ((0, max(rows, 0)), (0, max(columns, 0)), (0, 0)), mode="edge")
        window = (window_left, window_top, window_right, window_bottom)  # fractional, in pixels of what was read
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=window)
        return np.asarray(resized)


def _source_range(start: int, length: int, step: float, limit: int) -> tuple[int, int, float, float]:
    """The source pixels of a region along one axis: first and end (exclusive) in the source of ``limit`` pixels, of
    which each of the resized picture's covers ``step``, and where between them the region ``start`` ..
    ``start + length`` begins and ends: after their end if the source lacks the last pixels."""
    low, high = start * step, (start + length) * step
    if high < limit + _EPSILON:
        high = min(high, limit)
    margin = max(1.0, step) + 1  # support of the triangle filter beyond the window
    first, last = max(0, min(int(low - margin), limit - 1)), min(limit, int(high + margin) + 1)
    return first, last, low - first, high - first


def open_pictures(
    path: str | os.PathLike[str],
    percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
    level: int = 0,
    channels: Sequence[int] | None = None,
    pixel_size: float | None = None,
) -> list[Picture]:
    """Open the pictures of a file: one, or one per scene, well, field, time and depth, and page of a stack.

    Args:
        path: any format that :func:`maskrcnn.data.reader.open_stored` reads.
        percentiles: see :class:`Picture`.
        level: the level of the pyramid to take as the picture; 0 is the full size.
        channels: the file's channels (from 0) to use as red, green and blue; a single one becomes grey, with two, blue
            is black. None: grey or RGB, without alpha.
        pixel_size: side of the pixels of level 0 in micrometres, instead of what the file says.

    Raises:
        InputError: the file is missing or damaged or has unknown axes; it has no such level or channel; it has two,
            four or more channels and none were chosen; its format needs a library that is not installed.
    """
    pictures = open_stored(path, level, channels, pixel_size=given_size(pixel_size))
    colours = 3 if channels is None else len(channels)
    return [_picture(stored, percentiles, colours) for stored in pictures]


def _picture(stored: StoredPicture, percentiles: tuple[float, float] | None, colours: int) -> Picture:
    return Picture(
        stored.path,
        stored.name,
        stored.size,
        stored.read,
        percentiles,
        stored.levels,
        stored.pixel_size,
        stored.place,
        stored.page,
        colours,
    )


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
    picture = in_memory(stored.whole(), stored.path, stored.name, percentiles)
    return picture.read(0, 0, *picture.size)


def in_memory(array: Array, path: Path, name: str, percentiles: tuple[float, float] | None) -> Picture:
    """A picture of an array [H, W] or [H, W, 3] of integers or finite floats."""

    def read(top: int, left: int, height: int, width: int) -> Array:
        return array[top : top + height, left : left + width]

    return Picture(path, name, (array.shape[0], array.shape[1]), read, percentiles)
