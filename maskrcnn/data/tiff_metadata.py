"""What a TIFF says of its pictures besides the pixels: pixel size, names of channels, wells and fields."""

from __future__ import annotations

import re
from typing import Any

import tifffile

from maskrcnn.data.ome_xml import OmeImage, read_ome_xml
from maskrcnn.data.pixel_size import MICROMETRES, PixelSize, micrometres_per

_UNITS = {2: MICROMETRES["in"], 3: MICROMETRES["cm"]}
"""Micrometres per TIFF ResolutionUnit; 1 is none."""


def describe_scenes(tiff: tifffile.TiffFile, count: int) -> list[OmeImage]:
    """What the file says of each of its ``count`` series, in order; of a series that it does not describe, nothing."""
    images = read_ome_xml(tiff.ome_metadata or "")
    if len(images) != count:  # series without pixels in this file
        images = images if len(set(images)) == 1 else []
        images = images[:1] * count if images else [OmeImage("", None, ())] * count
    return images


def pixel_size_of(tiff: tifffile.TiffFile, page: tifffile.TiffPage, image: OmeImage) -> PixelSize | None:
    """The size of a page's pixels: by OME, ImageJ, LSM, Aperio's description, else by the resolution tags."""
    if image.pixel_size is not None:
        return image.pixel_size
    imagej = tiff.imagej_metadata
    if imagej and (unit := micrometres_per(str(imagej.get("unit", "")))) is not None:
        return _of_resolution(page, unit, "ImageJ")
    if tiff.is_lsm and (lsm := tiff.lsm_metadata) and "VoxelSizeX" in lsm:
        return PixelSize(lsm["VoxelSizeY"] * MICROMETRES["m"], lsm["VoxelSizeX"] * MICROMETRES["m"], "LSM")
    found = re.search(r"\|\s*MPP\s*=\s*([-+.\deE]+)", tiff.pages.first.description or "")
    if found and tiff.pages.first.description.startswith("Aperio"):
        return PixelSize(float(found[1]), float(found[1]), "Aperio's MPP")
    unit = _UNITS.get(int(page.tags.valueof("ResolutionUnit", 2)))
    return None if imagej or unit is None else _of_resolution(page, unit, "its resolution tags")


def _of_resolution(page: tifffile.TiffPage, unit: float, source: str) -> PixelSize | None:
    """Pixel size by XResolution and YResolution, in pixels per ``unit`` micrometres; 0 if they are 0."""
    sides = []
    for name in ("YResolution", "XResolution"):
        value: Any = page.tags.valueof(name)
        if value is None:
            return None
        pixels, units = value
        sides.append(unit * units / pixels if pixels else 0.0)
    return PixelSize(sides[0], sides[1], source)
