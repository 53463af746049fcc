"""Opens the pictures of a TIFF: scenes, stacks, channels and levels, as microscopes and image tools write them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from maskrcnn.data.ome_xml import OmeImage
from maskrcnn.data.stored import Array, Level, ReadRegion, StoredPicture, check_claim, check_type, named, readable
from maskrcnn.data.tiff_layout import ChannelsToColours, Layout, Region, of_rows
from maskrcnn.data.tiff_metadata import describe_scenes, pixel_size_of
from maskrcnn.data.tiff_segments import OpenTiff, Segments
from maskrcnn.errors import InputError

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_ASSOCIATED = ("label", "macro", "map", "overview", "thumbnail")
"""Names of pictures that scanners store in addition to the slide."""

_REDUCED, _MASK = 1, 4  # bits of TIFF's NewSubfileType

_MAX_PAGES = 1_000_000


def is_tiff(path: Path) -> bool:
    """Whether the file starts with the signature of a TIFF; its name does not matter."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def open_tiff(path: Path, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """Open the pictures of a TIFF, with their pyramids: one per scene and per page of a stack.

    Places are by scene (by well and field where OME-XML has a plate), time and depth; pages whose axes have another
    meaning or none are numbered from 1.

    The orientation tag is not applied: ImageJ, QuPath, napari and tifffile, with which masks for TIFFs are made, show
    pixels in the order in which they are stored.

    Args:
        path: any TIFF.
        channels: the channels to use; None: grey or RGB, without alpha.
        colours: False returns all channels with their values as stored, as needed for label masks.

    Raises:
        InputError: the file is damaged, its axes or colour space are not supported, or :func:`chosen_channels` raises
            it.
    """
    with readable(path):
        file = OpenTiff(tifffile.TiffFile(path), path)
        _check_header(file.tiff, path)
        described = describe_scenes(file.tiff, len(file.tiff.series))
        all_series = list(zip(range(len(described)), file.tiff.series, described, strict=True))
        scenes = [scene for scene in all_series if _is_picture(scene[1])] or all_series
        if not scenes:
            raise InputError(f"{path}: a TIFF without a picture")
        if colours:
            _warn_about_orientation(path, scenes[0][1].keyframe.tags.valueof("Orientation", 1))
        found = [
            _placed(picture, scene, image, len(scenes) if file.tiff.is_ome else 1)
            for scene, (number, series, image) in enumerate(scenes)
            for picture in _pictures_with_levels(file, number, series, image, channels, colours)
        ]
    several = len(scenes) > 1 and not file.tiff.is_ome
    if several:  # pages that differ in size or compression are separate series
        found.sort(key=lambda picture: picture.page)
    if several or len({picture.place for picture in found}) < len(found):
        found = [replace(picture, place=str(number)) for number, picture in enumerate(found, start=1)]
    return named(found, path)


def _placed(picture: StoredPicture, scene: int, image: OmeImage, scenes: int) -> StoredPicture:
    """The picture with the place of its scene before its own."""
    place = image.place or (f"s{scene}" if scenes > 1 else "")
    return replace(picture, place="_".join(part for part in (place, picture.place) if part))


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
    size = page.imagelength, page.imagewidth
    bytes_per_pixel = page.samplesperpixel * page.bitspersample / 8
    if page.is_tiled and page.tilelength and page.tilewidth:  # a sparse file may leave out most of its tiles
        tiles = -(-size[0] // page.tilelength) * -(-size[1] // page.tilewidth)
        counts = page.databytecounts
        bytes_per_pixel *= max(1, len(counts) - counts.count(0)) / tiles if tiles and len(counts) >= tiles else 1
    check_claim(path, size, bytes_per_pixel, page.parent.filehandle.size)


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


def _pictures_with_levels(
    file: OpenTiff, number: int, series: Any, image: OmeImage, channels: Sequence[int] | None, colours: bool
) -> list[StoredPicture]:
    """The pictures of one series, each with its copies at the other levels of the pyramid."""
    levels = [
        _pictures(file, (number, level), series.levels[level], channels, colours) for level in range(len(series.levels))
    ]
    pixel_size = pixel_size_of(file.tiff, series.keyframe, image)
    found = []
    for picture, *copies in zip(*(level for level in levels if len(level) == len(levels[0])), strict=True):
        coarse = tuple(Level(copy.read, copy.size) for copy in copies)
        found.append(replace(picture, levels=coarse, pixel_size=pixel_size, channels=image.channels))
    return found


def _pictures(
    file: OpenTiff, number: tuple[int, int], series: Any, channels: Sequence[int] | None, colours: bool
) -> list[StoredPicture]:
    """The pictures of one level of a series."""
    path = file.path
    check_complete(series, path)
    check_type(path, series.dtype)
    page = series.keyframe
    size = page.imagelength, page.imagewidth
    _check_page(page, path)
    layout = Layout.of(series, path)
    segments = Segments(file, number, series)
    region: Region = segments.region
    if layout.rows:
        size, region = layout.rows, of_rows(segments, layout.count)
    to_colours = ChannelsToColours.of(layout, page, channels, path) if colours else None
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
    for place, planes in layout.planes(stored):
        plane_path, page_index = segments.page_of(planes[0])
        found.append(StoredPicture(reader(planes), size, plane_path, path.name, page_index, place))
    return found


def check_complete(series: Any, path: Path) -> None:
    """Raise InputError for a truncated file: some codecs silently fill missing data with zeros."""
    for page in series.pages:
        if page is None:
            raise InputError(f"{path}: a page is in another file of this OME-TIFF, which is missing")
        ends = (o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False))
        if max(ends, default=0) > page.parent.filehandle.size:  # pages of an OME-TIFF may be in several files
            raise InputError(f"{path}: truncated, its last pixels are beyond the end of the file")
