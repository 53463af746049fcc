"""Reads whole slides that are no TIFFs, such as MIRAX (MRXS), with OpenSlide, by region and level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.colours import chosen_channels, pick
from maskrcnn.data.pixel_size import PixelSize
from maskrcnn.data.stored import Array, Level, ReadRegion, StoredPicture, needed, readable

SUFFIXES = (".mrxs", ".vms", ".vmu", ".svslide")
"""Endings of the formats of OpenSlide that tifffile does not read. Slides that are TIFFs (SVS, NDPI, SCN, BIF) are read
by :mod:`maskrcnn.data.tiff`."""


def open_slide(path: Path, channels: Sequence[int] | None) -> list[StoredPicture]:
    """Open a slide as one picture, RGB on a white background.

    Raises:
        InputError: the file is damaged or OpenSlide does not know it, or OpenSlide is not installed.
    """
    with readable(path):
        slide = needed("openslide", "slides", path).OpenSlide(path)
        chosen = chosen_channels(3, False, channels, path)
        sizes = [(height, width) for width, height in slide.level_dimensions]

        def reader(level: int) -> ReadRegion:
            scale = slide.level_downsamples[level]  # of both axes: OpenSlide divides by it

            def read(top: int, left: int, height: int, width: int) -> Array:
                with readable(path):
                    start = round(left * scale), round(top * scale)
                    return pick(_on_white(slide.read_region(start, level, (width, height))), chosen)

            return read

        levels = tuple(Level(reader(level), size) for level, size in enumerate(sizes) if level > 0)
        pixel_size = _pixel_size(slide.properties)
        return [StoredPicture(reader(0), sizes[0], path, path.name, levels=levels, pixel_size=pixel_size)]


def _on_white(region: Any) -> Array:
    """An RGBA picture, whose parts without a scan are transparent, on white: uint8 [h, w, 3]."""
    pixels = np.asarray(region)
    alpha = pixels[:, :, 3:]
    if alpha.min() == 255:
        return pixels[:, :, :3]
    return (255 - (255 - pixels[:, :, :3].astype(np.uint16)) * alpha // 255).astype(np.uint8)


def _pixel_size(properties: Any) -> PixelSize | None:
    sides = [properties.get(f"openslide.mpp-{axis}") for axis in "yx"]
    return None if None in sides else PixelSize(float(sides[0]), float(sides[1]), "OpenSlide")
