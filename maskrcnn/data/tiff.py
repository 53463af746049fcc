"""Opens the pictures of a TIFF: scenes, stacks, channels and levels, as microscopes and image tools write them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from maskrcnn.data.colours import chosen_channels, conversion, is_palette, is_ycbcr, pick
from maskrcnn.data.stored import Array, ReadRegion, StoredPicture, check_claim, check_type, readable
from maskrcnn.data.tiff_segments import OpenTiff, Segments
from maskrcnn.errors import InputError

Region = Callable[[int, int, int, int, int], Array]
"""(plane, top, left, height, width) -> [height, width, samples]."""

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ASSOCIATED = ("label", "macro", "map", "overview", "thumbnail")
"""Names of pictures that scanners store in addition to the slide."""

_REDUCED, _MASK = 1, 4  # bits of TIFF's NewSubfileType

_MAX_PAGES = 1_000_000

_MAX_UNNAMED_CHANNELS = 4
"""An axis of unknown meaning holds channels if it is at most this long, else pages."""


def is_tiff(path: Path) -> bool:
    """Whether the file starts with the signature of a TIFF; its name does not matter."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def open_tiff(path: Path, level: int, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """Open the pictures of a TIFF: one per scene and per page of a stack.

    The orientation tag is not applied: ImageJ, QuPath, napari and tifffile, with which masks for TIFFs are made, show
    pixels in the order in which they are stored.

    Args:
        path: any TIFF.
        level: pyramid level; 0 is the full size. Pictures without that level are left out.
        channels: the channels to use; None: grey or RGB, without alpha.
        colours: False returns all channels with their values as stored, as needed for label masks.

    Raises:
        InputError: the file is damaged, its axes or colour space are not supported, or :func:`chosen_channels` raises
            it.
    """
    with readable(path):
        file = OpenTiff(tifffile.TiffFile(path), path)
        _check_header(file.tiff, path)
        all_series = list(enumerate(file.tiff.series))
        scenes = [(number, series) for number, series in all_series if _is_picture(series)] or all_series
        if not scenes:
            raise InputError(f"{path}: a TIFF without a picture")
        levels = max(len(series.levels) for _, series in scenes)
        if not 0 <= level < levels:
            raise InputError(f"--level is {level}; {path} has the levels 0 to {levels - 1}")
        if colours:
            _warn_about_orientation(path, scenes[0][1].keyframe.tags.valueof("Orientation", 1))
        found = [
            (page, scene)
            for scene, (number, series) in enumerate(scenes, start=1)
            if level < len(series.levels)  # small pictures of a slide file may have fewer
            for page in _pictures(file, number, series.levels[level], channels, colours)
        ]
    if len(found) == 1:
        return [found[0][0]]
    scene_suffix = " (scene {})" if file.tiff.is_ome and len(scenes) > 1 else ""
    if not scene_suffix and len(scenes) > 1:  # pages that differ in size, dtype or compression are separate series
        found.sort(key=lambda page: page[0].page)
    return [
        replace(page, name=f"{path.name}#{number}" + scene_suffix.format(scene))
        for number, (page, scene) in enumerate(found, start=1)
    ]


def _check_header(tiff: tifffile.TiffFile, path: Path) -> None:
    """Raise InputError for an impossible first page, or a description with more pages than the file can hold.

    tifffile allocates a list of the number of pages in an OME header, and would return only the first page of a
    truncated ImageJ stack with one header.
    """
    _check_page(tiff.pages.first, path)
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*", tiff.ome_metadata or ""):
        count = math.prod(map(int, re.findall(r"\bSize[CZT]\s*=\s*[\"'](\d+)", pixels)))
        if count > _MAX_PAGES:
            raise InputError(f"{path}: {count} pages by its OME header, expected at most {_MAX_PAGES}")
    page = tiff.pages.first
    count = int((tiff.imagej_metadata or {}).get("images", 1))
    available = tiff.filehandle.size - page.dataoffsets[0] if page.dataoffsets else 0
    if count > 1 and len(tiff.pages) == 1 and count * page.nbytes > available:
        raise InputError(f"{path}: truncated, expected {count} pages by its ImageJ header")


def _check_page(page: tifffile.TiffPage, path: Path) -> None:
    bytes_per_pixel = page.samplesperpixel * page.bitspersample / 8
    check_claim(path, (page.imagelength, page.imagewidth), bytes_per_pixel, page.parent.filehandle.size)


def _is_picture(series: Any) -> bool:
    """Whether the series is a picture, not a thumbnail, mask or label of a slide."""
    name = str(series.name).lower().removesuffix(" image")
    return name not in _ASSOCIATED and not int(series.keyframe.subfiletype) & (_REDUCED | _MASK)


@cache
def _warn_about_orientation(path: Path, orientation: object) -> None:
    if orientation in range(2, 9):
        print(
            f"warning: {path}: its orientation tag ({orientation}) is not applied, as in ImageJ and napari; masks "
            "must match the pixels as they are stored",
            file=sys.stderr,
        )


def _pictures(
    file: OpenTiff, number: int, series: Any, channels: Sequence[int] | None, colours: bool
) -> list[StoredPicture]:
    """The pictures of one series, at one level of its pyramid."""
    path = file.path
    check_complete(series, path)
    check_type(path, series.dtype)
    page = series.keyframe
    size = page.imagelength, page.imagewidth
    _check_page(page, path)
    layout = _Layout.of(series, path)
    segments = Segments(file, number, series)
    region: Region = segments.region
    if layout.rows:
        size, region = layout.rows, _of_rows(segments, layout.count)
    to_colours = _ChannelsToColours.of(layout, page, channels, path) if colours else None
    stored = list(range(layout.count)) if to_colours is None else to_colours.stored

    def reader(planes: Sequence[int]) -> ReadRegion:
        def read(top: int, left: int, height: int, width: int) -> Array:
            with file.lock, readable(path):
                parts = [region(plane, top, left, height, width) for plane in planes]
                pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
                if to_colours is not None:
                    return to_colours(pixels)
                return pixels if pixels.shape[2] > 1 else pixels[:, :, 0]

        return read

    found = []
    for planes in layout.planes(stored):
        plane_path, page_index = segments.page_of(planes[0])
        found.append(StoredPicture(reader(planes), size, plane_path, path.name, page_index))
    return found


def check_complete(series: Any, path: Path) -> None:
    """Raise InputError for a truncated file: some codecs silently fill missing data with zeros."""
    for page in series.pages:
        if page is None:
            raise InputError(f"{path}: a page is in another file of this OME-TIFF, which is missing")
        ends = (o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > page.parent.filehandle.size:  # pages of an OME-TIFF may be in several files
            raise InputError(f"{path}: truncated, its last pixels are beyond the end of the file")


@dataclass(frozen=True)
class _Layout:
    """Meaning of the axes of a series.

    Attributes:
        lengths: lengths of the axes before height and width.
        channel_axis: index of the one that counts channels, or None.
        count: number of channels of a picture.
        of_samples: whether the channels are the samples of a TIFF's pixels.
        rows: (H, W) if each row of the picture is a page, else None.
    """

    lengths: tuple[int, ...]
    channel_axis: int | None
    count: int
    of_samples: bool
    rows: tuple[int, int] | None = None

    @staticmethod
    def of(series: Any, path: Path) -> _Layout:
        axes = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"]
        names, lengths = "".join(a for a, _ in axes), tuple(n for _, n in axes)
        y = names.find("Y")
        last = names[y + 2 :]
        if y < 0 or names[y : y + 2] != "YX" or last not in ("", "S", "C", "Q"):
            raise InputError(f"{path}: axes {series.axes} of size {series.shape}, expected pictures of height x width")
        if last:
            return _Layout(lengths[:y], None, lengths[-1], True)
        if names == "QYX" and lengths[2] <= _MAX_UNNAMED_CHANNELS < min(
            lengths[:2]
        ):  # an array [H, W, C] without metadata
            return _Layout((), None, lengths[2], False, lengths[:2])
        channel_axes = [index for index, axis in enumerate(names[:y]) if axis in "SC"]
        if not channel_axes and y > 0 and names[y - 1] == "Q" and lengths[y - 1] <= _MAX_UNNAMED_CHANNELS:
            channel_axes = [y - 1]
        axis = channel_axes[-1] if channel_axes else None
        count = 1 if axis is None else lengths[axis]
        return _Layout(lengths[:y], axis, count, axis is not None and names[axis] == "S")

    def planes(self, channels: Sequence[int]) -> Iterator[list[int]]:
        """The indices of the planes that hold ``channels``, for each picture."""
        if self.channel_axis is None:
            yield from ([plane] for plane in range(math.prod(self.lengths)))
            return
        before, after = self.lengths[: self.channel_axis], self.lengths[self.channel_axis + 1 :]
        indices = np.arange(math.prod(self.lengths)).reshape(math.prod(before), self.count, math.prod(after))
        for outer in range(indices.shape[0]):
            for inner in range(indices.shape[2]):
                yield indices[outer, list(channels), inner].tolist()


@dataclass(frozen=True)
class _ChannelsToColours:
    """Conversion of stored channels to grey or RGB.

    Attributes:
        stored: the channels to read.
        convert: converts stored values to grey or RGB; None: not needed.
        picked: the channels to use after reading and conversion.
    """

    stored: list[int]
    convert: Callable[[Array], Array] | None
    picked: list[int]

    @staticmethod
    def of(layout: _Layout, page: tifffile.TiffPage, channels: Sequence[int] | None, path: Path) -> _ChannelsToColours:
        convert = conversion(page, path)
        if is_palette(page) and layout.channel_axis is not None and not layout.of_samples:
            convert = None  # ImageJ's lookup table for the display of a channel
        mixed = convert is not None and (is_palette(page) or is_ycbcr(page))
        count = 3 if mixed else layout.count
        alpha = layout.of_samples and not mixed and _has_alpha(page, count)
        chosen = chosen_channels(count, alpha, channels, path)
        if mixed or layout.channel_axis is None:
            return _ChannelsToColours(list(range(layout.count)), convert, chosen)
        return _ChannelsToColours(chosen, convert, list(range(len(chosen))))  # planes that are not used are not read

    def __call__(self, pixels: Array) -> Array:
        return pick(pixels if self.convert is None else self.convert(pixels), self.picked)


def _has_alpha(page: tifffile.TiffPage, count: int) -> bool:
    """Whether the last sample is alpha. A fourth sample after RGB is, even if the header does not say so."""
    if count == 4 and page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR):
        return True
    alphas = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
    return count in (2, 4) and bool(page.extrasamples) and page.extrasamples[-1] in alphas


def _of_rows(segments: Segments, count: int) -> Region:
    """Region reader [height, width, count] for series whose page ``y`` is row ``y``, [width, count]."""

    def region(_: int, top: int, left: int, height: int, width: int) -> Array:
        rows = range(top, top + height)
        return np.stack([segments.region(row, left, 0, width, count)[:, :, 0] for row in rows])

    return region
