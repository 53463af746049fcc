"""Reads what OME-XML says of a file's pictures: pixel sizes, names of channels, wells and fields of a plate."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from maskrcnn.data.pixel_size import PixelSize, micrometres_per


@dataclass(frozen=True)
class OmeImage:
    """One ``Image`` element: its place on a plate (``B03_f2``) or "", the size of its pixels, its channels' names."""

    place: str
    pixel_size: PixelSize | None
    channels: tuple[str, ...]


def read_ome_xml(text: str) -> list[OmeImage]:
    """The images of an OME-XML document in order; [] for text that is none.

    https://docs.openmicroscopy.org/ome-model/6.3.1/ome-tiff/specification.html
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return []
    places = _places(root)
    images = []
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            continue
        names = [channel.get("Name") or "" for channel in pixels.iterfind("{*}Channel")]
        images.append(OmeImage(places.get(image.get("ID", ""), ""), _pixel_size(pixels), tuple(names)))
    return images


def _pixel_size(pixels: Element) -> PixelSize | None:
    sides = []
    for axis in "YX":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")
        factor = micrometres_per(unit)
        if value is None or factor is None:  # "pixel" and "reference frame" are units in OME too
            return None
        sides.append(float(value) * factor)
    return PixelSize(sides[0], sides[1], "OME")


def _places(root: Element) -> dict[str, str]:
    """The well and field of each image that a plate refers to, by the image's ID."""
    places = {}
    plates = root.findall("{*}Plate")
    for number, plate in enumerate(plates):
        prefix = f"p{number}_" if len(plates) > 1 else ""
        for well in plate.iterfind("{*}Well"):
            name = well_name(int(well.get("Row", 0)), int(well.get("Column", 0)))
            for field, sample in enumerate(well.iterfind("{*}WellSample")):
                reference = sample.find("{*}ImageRef")
                if reference is not None:
                    places[reference.get("ID", "")] = f"{prefix}{name}_f{field}"
    return places


def well_name(row: int, column: int) -> str:
    """A well's name on the plate: ``B03`` for row 1 and column 2, counted from 0; rows after Z are AA, AB, ..."""
    letters = ""
    row += 1
    while row > 0:
        row, digit = divmod(row - 1, 26)
        letters = chr(ord("A") + digit) + letters
    return f"{letters}{column + 1:02d}"
