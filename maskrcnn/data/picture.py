"""Pictures that are read by region: a slide of 50,000 x 50,000 pixels is never in memory as a whole.

A file holds one picture, or a stack of pages that are pictures of their own. TIFFs are decoded strip by strip or tile
by tile (any compression, BigTIFF, OME-TIFF, a level of a pyramid); PNG and JPEG have no regions and are decoded whole.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from PIL import Image
from torch import Tensor

from maskrcnn.data.tiff import (
    DEFAULT_PERCENTILES,
    Array,
    check_complete,
    decode_pillow,
    is_tiff,
    readable,
    resolve_photometric,
    stretch,
)
from maskrcnn.errors import InputError

SEGMENT_CACHE = 256 << 20
"""Bytes of decoded strips and tiles that an open TIFF keeps: neighbouring regions share them."""

BAND = 1 << 21
"""Pixels that are read at a time where a whole picture is gone through."""

_CHANNEL_AXES = "SC"  # samples of a pixel, channels
_UNNAMED_AXIS = "Q"  # tifffile's name for an axis that the file does not explain: channels if there are up to 4

_JPEG = (6, 7, 34892, 33007)  # TIFF's numbers of compressions that keep their tables apart

ReadRegion = Callable[[int, int, int, int], Array]
"""(top, left, height, width) -> the stored pixels [h, w] or [h, w, channels]."""


class Picture:
    """One picture, read by region as RGB in 0..255, stretched as :func:`maskrcnn.data.tiff.read_image` does.

    Attributes:
        name: the file's name; of a page of a stack, with its number: ``stack.tif#2``, from 1.
        path: the file.
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
            values = pixels
        else:
            if self._range is None:
                self._range = self._find_range(pixels.dtype)
            if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
                if self._table is None:
                    self._table = stretch(np.arange(np.iinfo(pixels.dtype).max + 1), *self._range)
                values = self._table[pixels]
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

    def raw(self, top: int, left: int, height: int, width: int) -> Array:
        """The pixels of a region as they are stored, [height, width] or [height, width, 3], of any type.

        Raises as :meth:`read` does.
        """
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"{self.name}: region {top, left, height, width} of a picture of {self.size}")
        pixels = self._read(top, left, height, width)
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


def open_pictures(
    path: str | os.PathLike[str],
    percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
    level: int = 0,
    channels: Sequence[int] | None = None,
) -> list[Picture]:
    """The pictures of a file: one, or one a page of a stack (time, depth, or pages that the file does not explain).

    Args:
        path: TIFF, PNG or JPEG.
        percentiles: see :func:`maskrcnn.data.tiff.read_image`; over the whole picture, whatever region is read.
        level: of a pyramid, 0 being the full size.
        channels: which of the file's channels (from 0) are shown as red, green and blue; one alone is shown as grey, of
            two the blue stays black. None: grey, RGB or RGBA, whose alpha is dropped.

    Raises:
        InputError: the file is missing, damaged or of unknown axes; it has no such level or channel; it has more
            than four channels and none were chosen.
    """
    path = Path(path)
    check_channels(channels)
    with readable(path):
        if is_tiff(path):
            return _open_tiff(path, percentiles, level, channels)
        if level != 0:
            raise InputError(f"--level is {level}; {path} has one level, 0")
        pixels = decode_pillow(path, colour=True)
    return [_in_memory(pixels, path, path.name, percentiles, channels)]


def check_channels(channels: Sequence[int] | None) -> None:
    """Raises InputError unless there are one to three, from 0."""
    if channels is not None and not 1 <= len(channels) <= 3:
        raise InputError(f"--channels: {len(channels)} given, expected one to three")
    if channels is not None and min(channels) < 0:
        raise InputError(f"--channels: {min(channels)} given, expected 0 or more")


def picture_of(array: Array, percentiles: tuple[float, float] | None, name: str = "image") -> Picture:
    """A picture in memory: ``array`` is [H, W], [H, W, 3] or [H, W, 4] of integers or floats.

    Raises InputError for another shape or type, no pixels, or values that are not finite.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] > 4) or 0 in array.shape:
        raise InputError(f"{name}: an array of shape {array.shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise InputError(f"{name}: an array of {array.dtype}, expected integers or finite floats")
    return _in_memory(array, Path(name), name, percentiles, None)


def _in_memory(
    array: Array, path: Path, name: str, percentiles: tuple[float, float] | None, channels: Sequence[int] | None
) -> Picture:
    pixels = array if array.ndim == 3 else array[:, :, None]
    chosen = pixels[:, :, _chosen(pixels.shape[2], channels, path)]

    def read(top: int, left: int, height: int, width: int) -> Array:
        return _as_colours(chosen[top : top + height, left : left + width])

    return Picture(path, name, (array.shape[0], array.shape[1]), read, percentiles)


def percentiles_of(bands: Callable[[], Iterator[Array]], percentiles: Sequence[float]) -> tuple[float, ...]:
    """Exact percentiles of pixels that are never in memory together, as ``numpy.percentile(method="inverted_cdf")``.

    The values are mapped to unsigned integers of the same order, and the digits of the wanted ones found from the
    highest, 16 bits in each pass over the pixels: one pass for 8 and 16 bits, two for 32.

    Args:
        bands: goes through all pixels anew at each call; finite integers or floats of one type.
        percentiles: in 0..100.
    """
    prefixes: list[int] = [0] * len(percentiles)
    ranks: list[int] = []
    bits = 0
    first = True
    kind: np.dtype[Any] | None = None
    while first or bits > 0:
        counts: list[npt.NDArray[np.int64]] = []
        for band in bands():
            keys = _ordered_keys(band.reshape(-1))
            if kind is None:
                kind, bits = band.dtype, keys.dtype.itemsize * 8
            digit = min(16, bits)
            if not counts:
                counts = [np.zeros(1 << digit, np.int64) for _ in percentiles]
            for index, prefix in enumerate(prefixes):
                if index and first:
                    counts[index] = counts[0]  # nothing tells the percentiles apart yet
                    continue
                inside = keys if first else keys[keys >> np.array(bits, keys.dtype) == prefix]
                digits = (inside >> np.array(bits - digit, keys.dtype)) & np.array((1 << digit) - 1, keys.dtype)
                counts[index] += np.bincount(digits.astype(np.int64), minlength=1 << digit)
        if first:
            total = int(counts[0].sum())
            ranks = [max(1, int(np.ceil(p / 100 * total))) for p in percentiles]
        for index, of_digit in enumerate(counts):
            cumulative = np.cumsum(of_digit)
            found = int(np.searchsorted(cumulative, ranks[index]))
            ranks[index] -= int(cumulative[found] - of_digit[found])
            prefixes[index] = prefixes[index] << min(16, bits) | found
        bits -= min(16, bits)
        first = False
    assert kind is not None
    return tuple(_value_of_key(prefix, kind) for prefix in prefixes)


def _ordered_keys(values: Array) -> Array:
    """Unsigned integers of the same size and order: of floats, all bits flip where the sign is set, else the sign's."""
    if values.dtype.kind == "u":
        return values
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    keys = np.ascontiguousarray(values).view(unsigned)
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    if values.dtype.kind == "i":
        return keys ^ sign
    return np.where(keys & sign, ~keys, keys | sign)


def _value_of_key(key: int, dtype: np.dtype[Any]) -> float:
    if dtype.kind == "u":
        return float(key)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    sign = 1 << (8 * dtype.itemsize - 1)
    if dtype.kind == "i":
        key ^= sign
    else:
        key = key ^ sign if key & sign else key ^ ((sign << 1) - 1)
    return float(np.array(key, unsigned).view(dtype))


def _open_tiff(
    path: Path, percentiles: tuple[float, float] | None, level: int, channels: Sequence[int] | None
) -> list[Picture]:
    tiff = tifffile.TiffFile(path)
    if not tiff.series:
        raise InputError(f"{path}: a TIFF without a picture")
    first: Any = tiff.series[0]
    # pages that differ in type or compression are series of their own; smaller ones are thumbnails and labels
    stacked = [series for series in tiff.series if _page_size(series) == _page_size(first)]
    if any(other.size > first.size for other in tiff.series if other not in stacked):
        raise InputError(f"{path}: {len(tiff.series)} pictures, the first is not the largest, expected one picture")
    readers = [read for series in stacked for read in _page_readers(tiff, series, path, level, channels)]
    names = [path.name] if len(readers) == 1 else [f"{path.name}#{page}" for page in range(1, len(readers) + 1)]
    size = _page_size(first.levels[level])
    return [Picture(path, name, size, read, percentiles) for name, read in zip(names, readers, strict=True)]


def _page_size(series: Any) -> tuple[int, int]:
    """(H, W) in pixels."""
    return series.keyframe.imagelength, series.keyframe.imagewidth


def _page_readers(
    tiff: tifffile.TiffFile, series: Any, path: Path, level: int, channels: Sequence[int] | None
) -> list[ReadRegion]:
    """A reader of each page of a series, at a level of its pyramid."""
    if not 0 <= level < len(series.levels):
        raise InputError(f"--level is {level}; {path} has the levels 0 to {len(series.levels) - 1}")
    series = series.levels[level]
    if series.dtype.kind not in "buif":
        raise InputError(f"{path}: pixels of type {series.dtype}, expected integers or floats")
    check_complete(series, path)
    axes = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"]
    names = "".join(a for a, _ in axes)
    at_y = names.find("Y")
    if at_y < 0 or names[at_y : at_y + 2] != "YX" or names[at_y + 2 :] not in ("", "S", "C", "Q"):
        raise InputError(f"{path}: axes {series.axes} of size {series.shape}, expected pictures of height x width")
    leading, trailing = axes[:at_y], axes[at_y + 2 :]
    channel_axis = next(
        (a for a, n in [*trailing, *reversed(leading)] if a in _CHANNEL_AXES or (a == _UNNAMED_AXIS and n <= 4)), None
    )
    if trailing and channel_axis != trailing[0][0]:
        raise InputError(f"{path}: axes {series.axes} of size {series.shape}, expected pictures of height x width")
    count = dict(axes).get(channel_axis, 1) if channel_axis else 1
    chosen = _chosen(count, channels, path)
    segments = _Segments(tiff, series, path)
    pages = [n for a, n in leading if a != channel_axis]
    lengths = [n for _, n in leading]
    readers = []
    for page in range(int(np.prod(pages)) if pages else 1):
        index = list(np.unravel_index(page, pages)) if pages else []
        planes = []
        for channel in chosen:
            rest = iter(index)
            place = [channel if a == channel_axis else int(next(rest)) for a, _ in leading]
            planes.append(int(np.ravel_multi_index(place, lengths)) if leading else 0)
        readers.append(segments.reader(planes[:1] if trailing else planes, chosen if trailing else None))
    return readers


class _Segments:
    """The strips or tiles of a series' pages, decoded where a region needs them; the last ones are kept."""

    def __init__(self, tiff: tifffile.TiffFile, series: Any, path: Path) -> None:
        self.tiff, self.path = tiff, path
        self.pages, self.keyframe = series.pages, series.keyframe
        self.cache: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self.cached = 0
        self.maps: dict[str, Array] = {}
        page = self.keyframe
        if page.imagedepth > 1:
            raise InputError(f"{path}: a volume in one page, expected pictures of height x width")
        self.shape = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self.separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
        self.planes_per_page = page.samplesperpixel if self.separate else 1
        self.headless = len(self.pages) == 1 and series.size > page.size
        if self.headless and not (page.is_memmappable and page.is_contiguous):
            raise InputError(f"{path}: a compressed stack with one header, expected one for each page")

    def reader(self, planes: Sequence[int], samples: Sequence[int] | None) -> ReadRegion:
        """Reads ``planes`` (counted through all pages) as channels, or of the one plane given, its ``samples``."""

        def read(top: int, left: int, height: int, width: int) -> Array:
            with readable(self.path):
                if samples is not None:
                    pixels = self.region(planes[0], top, left, height, width)[:, :, samples]
                else:
                    pixels = np.concatenate([self.region(p, top, left, height, width) for p in planes], axis=2)
            single = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
            resolved = resolve_photometric(single, self.keyframe, self.path)
            return _as_colours(resolved if resolved.ndim == 3 else resolved[:, :, None])

        return read

    def region(self, plane: int, top: int, left: int, height: int, width: int) -> Array:
        """Pixels [height, width, samples] of one plane."""
        page = self.keyframe
        number, sample = divmod(plane, self.planes_per_page)
        if (mapped := self._mapped(number)) is not None:
            part = mapped[sample] if self.separate else mapped
            return np.asarray(part[top : top + height, left : left + width])
        across, down = -(-page.imagewidth // self.shape[1]), -(-page.imagelength // self.shape[0])
        out = np.zeros((height, width, 1 if self.separate else page.samplesperpixel), page.dtype)
        for row in range(top // self.shape[0], (top + height - 1) // self.shape[0] + 1):
            for column in range(left // self.shape[1], (left + width - 1) // self.shape[1] + 1):
                segment = self._segment(number, (sample * down + row) * across + column)
                if segment is None:
                    continue  # a hole of a sparse file, which is 0
                y, x = row * self.shape[0], column * self.shape[1]
                y1, x1 = max(y, top), max(x, left)
                y2, x2 = min(y + segment.shape[0], top + height), min(x + segment.shape[1], left + width)
                out[y1 - top : y2 - top, x1 - left : x2 - left] = segment[y1 - y : y2 - y, x1 - x : x2 - x]
        return out

    def _mapped(self, number: int) -> Array | None:
        """An uncompressed page as it lies in the file. A stack above 4 GiB has one header, its pages lie behind it."""
        behind = number if self.headless else 0
        page = self.keyframe if self.headless else self.pages[number]
        if not (page.is_memmappable and page.is_contiguous):
            return None
        samples, rows, columns = (getattr(self.keyframe, n) for n in ("samplesperpixel", "imagelength", "imagewidth"))
        shape = (samples, rows, columns, 1) if self.separate else (rows, columns, samples)
        dtype = np.dtype(self.tiff.byteorder + self.keyframe.dtype.char)
        file = page.parent.filehandle.path
        if file not in self.maps:
            self.maps[file] = np.memmap(file, np.uint8, "r")
        return np.ndarray(shape, dtype, self.maps[file], page.dataoffsets[0] + behind * self.keyframe.nbytes)

    def _segment(self, number: int, index: int) -> Array | None:
        key = (number, index)
        if key in self.cache:
            self.cache.move_to_end(key)
            return self.cache[key]
        page = self.pages[number]
        # All of the header that is needed is read before the segment is sought: it moves the file's position.
        offset, count, decode = page.dataoffsets[index], page.databytecounts[index], self.keyframe.decode
        if count == 0:
            return None
        tables = {}
        if self.keyframe.compression in _JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": self.keyframe.jpegheader}
        decoded = decode(_bytes_at(page.parent.filehandle, offset, count), index, **tables)[0]
        if decoded is None:
            return None
        segment: Array = decoded[0]
        self.cache[key] = segment
        self.cached += segment.nbytes
        while self.cached > SEGMENT_CACHE and len(self.cache) > 1:
            self.cached -= self.cache.popitem(last=False)[1].nbytes
        return segment


def _bytes_at(handle: tifffile.FileHandle, offset: int, count: int) -> bytes:
    """A piece of a file, which tifffile has closed where it is another one of an OME set than was asked for."""
    closed = handle.closed
    if closed:
        handle.open()
    try:
        handle.seek(offset)
        return handle.read(count)
    finally:
        if closed:
            handle.close()


def _chosen(count: int, channels: Sequence[int] | None, path: Path) -> list[int]:
    """The channels to be shown: those asked for, or of grey (with alpha) the first and of RGB (with alpha) three."""
    if channels is None:
        if count > 4:
            raise InputError(f"{path}: {count} channels; choose one to three of them with --channels (from 0)")
        return [0] if count <= 2 else [0, 1, 2]
    if wrong := [channel for channel in channels if not 0 <= channel < count]:
        raise InputError(f"--channels: {path} has the channels 0 to {count - 1}, no {wrong[0]}")
    return list(channels)


def _as_colours(pixels: Array) -> Array:
    """[h, w, 1] -> [h, w]; two channels get a black third."""
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    if pixels.shape[2] == 2:
        return np.concatenate([pixels, np.zeros_like(pixels[:, :, :1])], axis=2)
    return pixels
