"""Pixel sizes in micrometres, as OME, ImageJ, scanners and resolution tags give them, and what cannot be one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from maskrcnn.data.ome_xml import read_ome_xml, well_name
from maskrcnn.data.picture import open_pictures
from maskrcnn.data.pixel_size import PixelSize, micrometres_per
from maskrcnn.data.tiff_metadata import describe_scenes, pixel_size_of
from maskrcnn.errors import InputError
from tests.data.microscope_files import write_svs

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 80), dtype=np.uint8)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("µm", 1.0),
        ("μm", 1.0),
        ("um", 1.0),
        ("micron", 1.0),
        ("microns", 1.0),
        ("\\u00B5m", 1.0),
        ("micrometre", 1.0),
        ("nm", 1e-3),
        ("Nanometer", 1e-3),
        ("mm", 1e3),
        ("m", 1e6),
        ("inch", 25400.0),
        ("Å", 1e-4),
        ("pixel", None),
        ("reference frame", None),
        ("", None),
        (None, None),
    ],
)
def test_units_have_many_names(unit: str | None, factor: float | None) -> None:
    assert micrometres_per(unit) == factor


OME = {"metadata": {"axes": "YX", "PhysicalSizeX": 325.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.325}}
PER_CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.ome.tif", OME, 0.325),
        ("a.ome.tif", {"metadata": {"axes": "YX"}}, None),
        ("a.tif", {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
        ("a.tif", {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "micron"}}, 0.5),
        ("a.tif", {"imagej": True, "resolution": (2e4, 2e4), "metadata": {"unit": "cm"}}, 0.5),
        ("a.tif", {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ("a.tif", {"imagej": True}, None),
        ("a.tif", PER_CM, 0.25),
        ("a.tif", {"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        ("a.tif", {}, None),
    ],
    ids=str,
)
def test_a_tiff_gives_its_pixel_size(tmp_path: Path, name: str, options: dict[str, Any], expected: float) -> None:
    tifffile.imwrite(tmp_path / name, PIXELS, **options)
    (picture,) = open_pictures(tmp_path / name)
    found = None if picture.pixel_size is None else picture.pixel_size.micrometres()
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-6))
    (picture,) = open_pictures(tmp_path / name, pixel_size=0.7)
    assert picture.micrometres() == pytest.approx(0.7)
    if expected is None:
        with pytest.raises(InputError, match=f"{name}: its pixel size is not known; give it with --pixel-size"):
            open_pictures(tmp_path / name)[0].micrometres()


def test_levels_of_a_slide_have_larger_pixels(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", np.zeros((1000, 1200, 3), np.uint8), (4, 16), mpp=0.2462)
    sides = [open_pictures(path, level=level)[0].micrometres() for level in range(3)]
    assert sides == pytest.approx([0.2462, 4 * 0.2462, 16 * 0.2462])
    (given,) = open_pictures(path, level=1, pixel_size=0.5)
    assert given.micrometres() == pytest.approx(2)


def test_pixels_of_an_lsm_are_in_metres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No library writes LSM: a TIFF that tifffile is told to take for one."""
    tifffile.imwrite(tmp_path / "a.tif", PIXELS)
    monkeypatch.setattr(tifffile.TiffFile, "lsm_metadata", {"VoxelSizeX": 3e-7, "VoxelSizeY": 3e-7})
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        tiff.is_lsm = True
        found = pixel_size_of(tiff, tiff.pages.first, describe_scenes(tiff, 1)[0])
    assert found is not None
    assert found.micrometres() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, r"352\.778 x 352\.778 micrometres by its resolution tags"),
        ({"resolution": (1, 1), "resolutionunit": "INCH"}, r"25400 x 25400 micrometres by its resolution tags"),
        ({"resolution": (40_000, 20_000), "resolutionunit": 3}, r"0\.25 x 0\.5 .*, expected square pixels"),
        (
            {"ome": True, "metadata": {"PhysicalSizeX": 0.0, "PhysicalSizeY": 0.0}},
            r"0 x 0 micrometres by OME, expected",
        ),
        ({"ome": True, "metadata": {"PhysicalSizeX": -0.5, "PhysicalSizeY": -0.5}}, r"-0\.5 x -0\.5 .*more than 0"),
        ({"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, r"352\.778 .* by ImageJ, expected"),
    ],
    ids=str,
)
def test_a_pixel_size_that_cannot_be_is_said(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **options)
    (picture,) = open_pictures(tmp_path / "a.tif")
    with pytest.raises(InputError, match=rf"a\.tif: its pixels are {message}") as error:
        picture.micrometres()
    assert str(error.value).endswith("; give it with --pixel-size")


def test_a_resolution_of_nothing_is_no_size(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, **PER_CM)
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages.first.tags["XResolution"].valueoffset
    content = bytearray(path.read_bytes())
    content[place : place + 8] = struct.pack("<II", 0, 1)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"0 x 0\.25 micrometres by its resolution tags, expected more than 0"):
        open_pictures(path)[0].micrometres()


def test_nearly_square_pixels_are_square() -> None:
    assert PixelSize(0.5, 0.5001, "x").micrometres() == pytest.approx(0.50005)
    assert PixelSize(0.5, 0.51, "x").micrometres() is None
    assert PixelSize(float("nan"), 0.5, "x").micrometres() is None


PLATE = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Plate ID="Plate:0">
<Well ID="Well:0" Row="1" Column="2"><WellSample ID="WellSample:0" Index="0"><ImageRef ID="Image:0"/></WellSample>
<WellSample ID="WellSample:1" Index="1"><ImageRef ID="Image:1"/></WellSample></Well></Plate>
<Image ID="Image:0"><Pixels PhysicalSizeX="0.65" PhysicalSizeY="0.65"><Channel ID="c0" Name="DAPI"/><Channel ID="c1"/>
</Pixels></Image><Image ID="Image:1"><Pixels/></Image></OME>"""


def test_ome_xml_has_wells_and_channels() -> None:
    first, second = read_ome_xml(PLATE)
    assert (first.place, second.place) == ("B03_f0", "B03_f1")
    assert first.channels == ("DAPI", "")
    assert first.pixel_size == PixelSize(0.65, 0.65, "OME")
    assert second.pixel_size is None
    assert read_ome_xml("no XML") == []


def test_a_plate_of_ome_tiff_names_its_pictures(tmp_path: Path) -> None:
    path = tmp_path / "plate.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(2):
            tiff.write(np.stack([PIXELS, PIXELS // 2]), metadata={"axes": "TYX"}, photometric="minisblack")
    text = tifffile.tiffcomment(path)
    wells = PLATE[PLATE.index("<Plate") : PLATE.index("<Image ID")]
    start = text.index("<Image ID")
    tifffile.tiffcomment(path, (text[:start] + wells + text[start:]).encode())
    names = [picture.name for picture in open_pictures(path)]
    assert names == [f"plate.ome.tif#B03_f{field}_t{t}" for field in range(2) for t in range(2)]


@pytest.mark.parametrize(("row", "column", "name"), [(0, 0, "A01"), (1, 11, "B12"), (25, 0, "Z01"), (31, 47, "AF48")])
def test_wells_are_called_by_letter_and_number(row: int, column: int, name: str) -> None:
    assert well_name(row, column) == name
