"""Pictures that are read by region: a slide of 50,000 x 50,000 pixels is never in memory as a whole.

Training and prediction take their pixels from here, and so the same ones. A file holds one picture, or pages and scenes
that are pictures of their own. TIFFs are decoded strip by strip or tile by tile (any compression, BigTIFF, OME-TIFF, a
level of a pyramid); PNG and JPEG have no regions and are decoded whole.
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
"""The project's intensity range: cuts hot pixels, keeps what a small bright cell in a dark picture has."""

BAND = 1 << 21
"""Pixels that are read at a time where a whole picture is gone through."""


class Picture:
    """One picture, read by region as RGB in 0..255; grey becomes three equal channels.

    Intensities between two percentiles of the whole picture, whatever region is read, and of all colour channels
    together (so that the hue stays) are stretched to 0..255; the values that :func:`numpy.percentile` gives with
    ``inverted_cdf``. Where they coincide, the picture's minimum and maximum take their place. Percentiles None take
    8-bit values as they are and scale other integers from their type's whole range, floats from the picture's minimum
    to its maximum.

    Attributes:
        name: the file's name; of a page of a stack, with its number: ``stack.tif#2``, from 1.
        path: the file that holds it: of pages of an OME set, which one opens as a whole, not always the one opened.
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
        """The pixels of a region as uint8 [height, width, 3].

        The first call goes once through the whole picture, if its intensities are stretched between percentiles.

        Raises:
            InputError: the file is damaged, or holds pixels that are not finite.
            ValueError: the region does not lie in the picture.
        """
        pixels = self.raw(top, left, height, width)
        if pixels.dtype == bool:
            values = pixels.astype(np.uint8) * np.uint8(255)
        elif self._percentiles is None and pixels.dtype == np.uint8:
            values = pixels.copy()  # a caller's array in memory stays the caller's
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
        """The whole picture as uint8 [h, w, 3], reduced by a whole factor until no side is above ``longest_side``."""
        factor = -(-max(self.size) // longest_side)
        rows = max(1, BAND // (self.size[1] * factor)) * factor
        bands = (
            Image.fromarray(self.read(top, 0, min(rows, self.size[0] - top), self.size[1]).numpy()).reduce(factor)
            for top in range(0, self.size[0], rows)
        )
        return np.concatenate([np.asarray(band) for band in bands])

    def rescaled(self, factor: float) -> Picture:
        """The picture enlarged by ``factor`` (or reduced, below 1), which is read by region as well.

        Bilinear with antialiasing, as training crops are. What a region shows does not depend on where it is cut.
        """
        size = max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor))
        return self if size == self.size else _RescaledPicture(self, size)

    def raw(self, top: int, left: int, height: int, width: int) -> Array:
        """The pixels of a region as they are stored, [height, width] or [height, width, 3], of any type.

        Raises as :meth:`read` does.
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
    """In this machine's byte order, floats of at most 64 bits: what the arithmetic of intensities is for."""
    wide = pixels.dtype.kind == "f" and pixels.dtype.itemsize > 8
    return pixels.astype(np.float64 if wide else pixels.dtype.newbyteorder("="), copy=False)


class _RescaledPicture(Picture):
    """A picture at another size, resampled from the regions of the original under what is read."""

    def __init__(self, original: Picture, size: tuple[int, int]) -> None:
        super().__init__(original.path, original.name, size, self._read_original, None)
        self._original = original

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """See :meth:`Picture.read`; the intensities are those of the original, stretched."""
        return torch.from_numpy(self.raw(top, left, height, width).copy())

    def _read_original(self, top: int, left: int, height: int, width: int) -> Array:
        (first, last, above, below), (begin, end, before, behind) = (
            _source_range(start, length, mine, theirs)
            for start, length, mine, theirs in zip(
                (top, left), (height, width), self.size, self._original.size, strict=True
            )
        )
        pixels = Image.fromarray(self._original.read(first, begin, last - first, end - begin).numpy())
        window = (before, above, behind, below)  # in the pixels read, fractions included
        return np.asarray(pixels.resize((width, height), Image.Resampling.BILINEAR, box=window))


def _source_range(start: int, length: int, size: int, original: int) -> tuple[int, int, float, float]:
    """Of one axis: the original's pixels that are needed, first and behind the last, and where among them the part
    ``start`` .. ``start + length`` of a picture of ``size`` pixels begins and ends."""
    step = original / size
    low, high = start * step, min((start + length) * step, original)
    margin = max(1.0, step) + 1  # what the triangle filter sees beyond the window
    first, last = max(0, int(low - margin)), min(original, int(high + margin) + 1)
    return first, last, low - first, high - first


def open_pictures(
    path: str | os.PathLike[str],
    percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
    level: int = 0,
    channels: Sequence[int] | None = None,
) -> list[Picture]:
    """The pictures of a file: one, or one for each page of a stack (time, depth, or pages that the file does not
    explain) and each scene.

    Args:
        path: TIFF, PNG, JPEG or JPEG 2000.
        percentiles: see :class:`Picture`.
        level: of a pyramid, 0 being the full size.
        channels: which of the file's channels (from 0) are shown as red, green and blue; one alone is shown as grey, of
            two the blue stays black. None: grey or RGB, without alpha.

    Raises:
        InputError: the file is missing, damaged or of unknown axes; it has no such level or channel; it has two, four
            or more channels and none were chosen.
    """
    stored = open_stored(path, level, channels)
    return [Picture(one.path, one.name, one.size, one.read, percentiles) for one in stored]


def read_image(
    path: str | os.PathLike[str],
    percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
    channels: Sequence[int] | None = None,
) -> Tensor:
    """Read the one picture of a file as a whole, as RGB, uint8 [H, W, 3].

    The pixels are those that :func:`open_pictures` gives by region. Args and errors as there; a file of several
    pictures raises InputError too.
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
    """A picture in memory: ``array`` is [H, W], [H, W, 3] or [H, W, 4] of integers or floats.

    Args:
        array: in any byte order, a tensor on any device, or what NumPy takes for an array. The last of four channels
            is alpha.
        percentiles: see :class:`Picture`.
        name: for messages.
        channels: as of :func:`open_pictures`; with them ``array`` may be [H, W, any number].

    Raises:
        InputError: another shape or type, no pixels, values that are not finite, or no such channel.
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
    shown = pick(pixels, chosen_channels(count, count == 4, channels, Path(name)))
    return _in_memory(shown, Path(name), name, percentiles)


def _to_numpy(values: npt.ArrayLike | Tensor, name: str) -> Array:
    try:
        if not isinstance(values, Tensor):
            return np.asarray(values)
        narrow = values.is_floating_point() and values.dtype.itemsize <= 2  # NumPy has neither bfloat16 nor float8
        found: Array = (values.detach().float() if narrow else values.detach()).cpu().numpy()
    except (RuntimeError, TypeError, ValueError) as error:  # sparse, quantized, without data; rows of several lengths
        kind = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise InputError(f"{name}: {kind} that NumPy cannot hold, expected an array of integers or floats") from error
    return found


def _in_memory(array: Array, path: Path, name: str, percentiles: tuple[float, float] | None) -> Picture:
    def read(top: int, left: int, height: int, width: int) -> Array:
        return array[top : top + height, left : left + width]

    return Picture(path, name, (array.shape[0], array.shape[1]), read, percentiles)
