"""Runs in micrometres: the diameter of cells, and tables in both units."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from maskrcnn.data.picture import open_pictures
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.convert import ConvertConfig, convert
from maskrcnn.export.infer import infer
from maskrcnn.export.table import COLUMNS, LENGTHS, write_table
from maskrcnn.predict.load import load
from tests.data.microscope_files import write_svs
from tests.export.cells import NAMES, crowd, picture_of, read_table, reader_of
from tests.export.runs import records

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 80), dtype=np.uint8)
HALF = {"resolution": (2, 2), "imagej": True, "metadata": {"unit": "um"}}
INCH = {"resolution": (72, 72), "resolutionunit": "INCH"}


def options(run: Path, picture: Path, **more: Any) -> InferConfig:
    return InferConfig(run / "best.pt", images=(picture,), out=picture.parent / "out", device="cpu", **more)


def test_lengths_positions_and_areas_are_in_both_units(tmp_path: Path) -> None:
    read = reader_of(picture_of(crowd().size))
    write_table(tmp_path / "pixels.csv", crowd(), NAMES, read)
    write_table(tmp_path / "both.csv", crowd(), NAMES, read, 0.325)
    pixels, both = read_table(tmp_path / "pixels.csv"), read_table(tmp_path / "both.csv")
    assert list(pixels[0]) == list(COLUMNS)
    assert list(both[0]) == [*COLUMNS, "area_um2", *(f"{name}_um" for name in LENGTHS)]
    for plain, row in zip(pixels, both, strict=True):
        assert plain == {name: row[name] for name in COLUMNS}
        assert float(row["area_um2"]) == pytest.approx(float(row["area"]) * 0.325**2, rel=1e-6)
        for name in LENGTHS:
            expected = pytest.approx(float(row[name]) * 0.325, rel=1e-6) if row[name] else ""
            assert (float(row[f"{name}_um"]) if row[f"{name}_um"] else "") == expected
    assert both[7]["area_um2"] == "0.0"
    assert both[7]["x1_um"] == ""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("written", "given", "expected"),
    [(HALF, None, 0.5), (HALF, 0.25, 0.25), ({}, 0.25, 0.25), ({}, None, None), (INCH, None, None)],
    ids=str,
)
def test_tables_and_label_images_have_micrometres_where_the_pixel_size_is_known(
    tiny_run: Path, tmp_path: Path, written: dict[str, Any], given: float | None, expected: float | None
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **written)
    written_formats = ("csv", "labels", "class-labels")
    assert not infer(options(tiny_run, tmp_path / "a.tif", format=written_formats, pixel_size=given)).failures
    (first, _) = read_table(tmp_path / "out" / "csv" / "a.csv")
    convert(ConvertConfig(tmp_path / "again", ("labels",), results=tmp_path / "out"))
    for name in ("out/labels/a.tif", "out/class-labels/a/class2.tif", "again/labels/a.tif"):
        size = open_pictures(tmp_path / name, None)[0].pixel_size
        assert (None if size is None else size.micrometres()) == (expected and pytest.approx(expected))
    if expected is None:
        assert list(first) == list(COLUMNS)
    else:
        assert float(first["area_um2"]) == pytest.approx(float(first["area"]) * expected**2, rel=1e-6)


@pytest.mark.parametrize(("diameter", "given", "pixels"), [("8um", None, 16), ("8 µm", 0.25, 32), (16.0, 0.25, 16)])
def test_a_diameter_in_micrometres_becomes_one_in_pixels(
    tiny_run: Path, tmp_path: Path, diameter: Any, given: float | None, pixels: float
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **HALF)
    infer(options(tiny_run, tmp_path / "a.tif", format=("csv",), diameter=diameter, pixel_size=given))
    assert records(tmp_path / "out")["a"]["diameter"] == pytest.approx(pixels)


def test_the_levels_of_a_slide_are_taken_by_the_diameter_and_cells_are_in_full_pixels(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells of 32 um, 128 pixels at 40x: the network's diameter at a quarter of the size or less."""
    predictor = load(tiny_run / "best.pt", "cpu")
    assert predictor.diameter is not None
    (slide,) = open_pictures(
        write_svs(tmp_path / "a.svs", np.zeros((1000, 1200, 3), np.uint8) + 50), predictor.percentiles
    )
    read: set[tuple[int, int]] = set()
    for picture in (slide, *slide.levels):

        def watched(*region: int, original: Any = picture._read, size: Any = picture.size) -> Any:
            read.add(size)
            return original(*region)

        monkeypatch.setattr(picture, "_read", watched)
    slide.intensities = (0.0, 255.0)
    micrometres = predictor.diameter * 4 * 0.25
    cells = predictor.predict(slide, diameter=f"{micrometres:g}um")
    assert read == {(250, 300)}
    assert cells.size == (1000, 1200)
    assert cells.diameter == pytest.approx(4 * predictor.diameter)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, r"a\.tif: its pixel size is not known; give it with --pixel-size, in micrometres"),
        (
            INCH,
            r"a\.tif: its pixels are 352\.778 x 352\.778 micrometres by its resolution tags, .* --pixel-size",
        ),
        (
            {"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"},
            r"a\.tif: its pixels are 0\.25 x 0\.5 micrometres by its resolution tags, expected square pixels",
        ),
    ],
    ids=str,
)
def test_without_a_pixel_size_a_diameter_in_micrometres_is_refused_in_one_line(
    tiny_run: Path, tmp_path: Path, written: dict[str, Any], message: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, **written)
    outcome = infer(options(tiny_run, tmp_path / "a.tif", format=("csv",), diameter="8um"))
    (failure,) = outcome.failures.values()
    assert re.search(message, failure)
    assert "\n" not in failure
    with pytest.raises(InputError, match=message):
        load(tiny_run / "best.pt", "cpu")(tmp_path / "a.tif", diameter="8um")


def test_arrays_have_a_pixel_size_when_it_is_given(tiny_run: Path) -> None:
    predictor = load(tiny_run / "best.pt", "cpu")
    assert predictor(PIXELS, diameter="8um", pixel_size=0.5).diameter == 16
    with pytest.raises(InputError, match="image: its pixel size is not known"):
        predictor(PIXELS, diameter="8um")


@pytest.mark.parametrize("text", ["0um", "-3um", "8", "8mm", "um", "8umm", "1e3um", "nanum"])
def test_what_is_no_diameter_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"--diameter is '.*'; expected .* a length in micrometres, such as 8um"):
        InferConfig(images=(tmp_path,), diameter=text).check()
