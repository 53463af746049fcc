"""Which pictures a TIFF holds: its scenes, stacks, channels and levels, as microscopes and image tools write them."""

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

_BESIDES = ("label", "macro", "map", "overview", "thumbnail")
"""Names of pictures that scanners put beside that of the slide."""

_REDUCED, _MASK = 1, 4  # bits of TIFF's NewSubfileType

_MOST_PAGES = 1_000_000

_MOST_UNNAMED = 4
"""An axis that the file does not explain holds channels, if there are no more; else pages."""


def is_tiff(path: Path) -> bool:
    """Whether the file begins as TIFFs do, whatever its name."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def open_tiff(path: Path, level: int, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """The pictures of a file: of every scene, and of every page of a stack.

    An orientation that the header gives is not applied: ImageJ, QuPath, napari and tifffile, with which masks for TIFFs
    are made, show pixels in the order in which they are stored.

    Args:
        path: any TIFF.
        level: of a pyramid, 0 being the full size; pictures without that level are left out.
        channels: those to be shown; None: grey or RGB, without alpha.
        colours: False gives all channels, and values as they are stored: label masks are read so.

    Raises:
        InputError: for a file that is damaged, of unknown axes or other colours, and as of :func:`chosen_channels`.
    """
    with readable(path):
        file = OpenTiff(tifffile.TiffFile(path), path)
        _check_header(file.tiff, path)
        every = list(enumerate(file.tiff.series))
        scenes = [(number, series) for number, series in every if _is_picture(series)] or every
        if not scenes:
            raise InputError(f"{path}: a TIFF without a picture")
        levels = max(len(series.levels) for _, series in scenes)
        if not 0 <= level < levels:
            raise InputError(f"--level is {level}; {path} has the levels 0 to {levels - 1}")
        if colours:
            _say_if_turned(path, scenes[0][1].keyframe.tags.valueof("Orientation", 1))
        found = [
            (page, scene)
            for scene, (number, series) in enumerate(scenes, start=1)
            if level < len(series.levels)  # small pictures beside that of a slide may have fewer
            for page in _pictures(file, number, series.levels[level], channels, colours)
        ]
    if len(found) == 1:
        return [found[0][0]]
    of_scene = " (scene {})" if file.tiff.is_ome and len(scenes) > 1 else ""
    if not of_scene and len(scenes) > 1:  # pages that differ in size, type or compression are series of their own
        found.sort(key=lambda page: page[0].page)
    return [
        replace(page, name=f"{path.name}#{number}" + of_scene.format(scene))
        for number, (page, scene) in enumerate(found, start=1)
    ]


def _check_header(tiff: tifffile.TiffFile, path: Path) -> None:
    """Raise InputError for a first page that cannot be, and for descriptions that count more pages than there can be.

    Of an OME file, tifffile makes a list of so many; of ImageJ's stack with one header, it would give the first alone.
    """
    _check_page(tiff.pages.first, path)
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*", tiff.ome_metadata or ""):
        counted = math.prod(map(int, re.findall(r"\bSize[CZT]\s*=\s*[\"'](\d+)", pixels)))
        if counted > _MOST_PAGES:
            raise InputError(f"{path}: {counted} pages by its OME header, expected at most {_MOST_PAGES}")
    page = tiff.pages.first
    counted = int((tiff.imagej_metadata or {}).get("images", 1))
    behind = tiff.filehandle.size - page.dataoffsets[0] if page.dataoffsets else 0
    if counted > 1 and len(tiff.pages) == 1 and counted * page.nbytes > behind:
        raise InputError(f"{path}: truncated, ImageJ counted {counted} pages")


def _check_page(page: tifffile.TiffPage, path: Path) -> None:
    bytes_per_pixel = page.samplesperpixel * page.bitspersample / 8
    check_claim(path, (page.imagelength, page.imagewidth), bytes_per_pixel, page.parent.filehandle.size)


def _is_picture(series: Any) -> bool:
    """Whether it is one by itself: no thumbnail, mask or label of a slide."""
    name = str(series.name).lower().removesuffix(" image")
    return name not in _BESIDES and not int(series.keyframe.subfiletype) & (_REDUCED | _MASK)


@cache
def _say_if_turned(path: Path, orientation: object) -> None:
    if orientation in range(2, 9):
        print(
            f"warning: {path}: its orientation tag ({orientation}) is not applied, as in ImageJ and napari; masks "
            "must fit the pixels as they are stored",
            file=sys.stderr,
        )


def _pictures(
    file: OpenTiff, number: int, series: Any, channels: Sequence[int] | None, colours: bool
) -> list[StoredPicture]:
    """Those of one series, at one level of its pyramid."""
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
    show = _Shown.of(layout, page, channels, path) if colours else None
    stored = list(range(layout.count)) if show is None else show.stored

    def reader(planes: Sequence[int]) -> ReadRegion:
        def read(top: int, left: int, height: int, width: int) -> Array:
            with file.lock, readable(path):
                parts = [region(plane, top, left, height, width) for plane in planes]
                pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
                if show is not None:
                    return show(pixels)
                return pixels if pixels.shape[2] > 1 else pixels[:, :, 0]

        return read

    found = []
    for planes in layout.planes(stored):
        place, index = segments.place_of(planes[0])
        found.append(StoredPicture(reader(planes), size, place, path.name, index))
    return found


def check_complete(series: Any, path: Path) -> None:
    """Raise InputError for a truncated file: some codecs fill what it lacks with zeros, without a word."""
    for page in series.pages:
        if page is None:
            raise InputError(f"{path}: a page is in another file of its OME set, which is missing")
        ends = (o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > page.parent.filehandle.size:  # pages of an OME set lie in several files
            raise InputError(f"{path}: truncated, its last pixels lie behind the end of the file")


@dataclass(frozen=True)
class _Layout:
    """What the axes of a series mean.

    Attributes:
        lengths: of the axes before height and width.
        channel_axis: which of them counts channels; None: none does.
        count: channels of a picture.
        of_samples: whether the channels are the samples of a TIFF's pixels.
        rows: (H, W) where each row of the picture is a page of its own, else None.
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
        at_y = names.find("Y")
        behind = names[at_y + 2 :]
        if at_y < 0 or names[at_y : at_y + 2] != "YX" or behind not in ("", "S", "C", "Q"):
            raise InputError(f"{path}: axes {series.axes} of size {series.shape}, expected pictures of height x width")
        if behind:
            return _Layout(lengths[:at_y], None, lengths[-1], True)
        if names == "QYX" and lengths[2] <= _MOST_UNNAMED < min(lengths[:2]):  # an array [H, W, C] without a word
            return _Layout((), None, lengths[2], False, lengths[:2])
        named = [index for index, axis in enumerate(names[:at_y]) if axis in "SC"]
        if not named and at_y > 0 and names[at_y - 1] == "Q" and lengths[at_y - 1] <= _MOST_UNNAMED:
            named = [at_y - 1]
        axis = named[-1] if named else None
        count = 1 if axis is None else lengths[axis]
        return _Layout(lengths[:at_y], axis, count, axis is not None and names[axis] == "S")

    def planes(self, channels: Sequence[int]) -> Iterator[list[int]]:
        """For each picture the places of its ``channels`` among all planes."""
        if self.channel_axis is None:
            yield from ([plane] for plane in range(math.prod(self.lengths)))
            return
        before, after = self.lengths[: self.channel_axis], self.lengths[self.channel_axis + 1 :]
        places = np.arange(math.prod(self.lengths)).reshape(math.prod(before), self.count, math.prod(after))
        for outer in range(places.shape[0]):
            for inner in range(places.shape[2]):
                yield places[outer, list(channels), inner].tolist()


@dataclass(frozen=True)
class _Shown:
    """How stored channels become the colours that are shown.

    Attributes:
        stored: the channels that are read.
        convert: from what is stored to grey or RGB; None: they are that already.
        picked: those of what is read and converted that are shown.
    """

    stored: list[int]
    convert: Callable[[Array], Array] | None
    picked: list[int]

    @staticmethod
    def of(layout: _Layout, page: tifffile.TiffPage, channels: Sequence[int] | None, path: Path) -> _Shown:
        convert = conversion(page, path)
        if is_palette(page) and layout.channel_axis is not None and not layout.of_samples:
            convert = None  # a table for the display of each channel
        mixed = convert is not None and (is_palette(page) or is_ycbcr(page))
        count = 3 if mixed else layout.count
        alpha = layout.of_samples and not mixed and _has_alpha(page, count)
        chosen = chosen_channels(count, alpha, channels, path)
        if mixed or layout.channel_axis is None:
            return _Shown(list(range(layout.count)), convert, chosen)
        return _Shown(chosen, convert, list(range(len(chosen))))  # planes that are not shown are not read

    def __call__(self, pixels: Array) -> Array:
        return pick(pixels if self.convert is None else self.convert(pixels), self.picked)


def _has_alpha(page: tifffile.TiffPage, count: int) -> bool:
    """Whether the last sample says how opaque a pixel is. A fourth beside RGB does, though headers may not say so."""
    if count == 4 and page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR):
        return True
    alphas = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
    return count in (2, 4) and bool(page.extrasamples) and page.extrasamples[-1] in alphas


def _of_rows(segments: Segments, count: int) -> Region:
    """Reads [height, width, count] where page ``y`` is [width, count], row ``y``."""

    def region(_: int, top: int, left: int, height: int, width: int) -> Array:
        rows = range(top, top + height)
        return np.stack([segments.region(row, left, 0, width, count)[:, :, 0] for row in rows])

    return region
