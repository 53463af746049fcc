"""Properties that all files of detections share."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from maskrcnn.errors import InputError
from maskrcnn.export.geojson import write_geojson
from maskrcnn.export.labels import write_class_labels, write_labels
from maskrcnn.export.rois import write_rois
from maskrcnn.export.table import COLUMNS, write_table
from maskrcnn.structures import Detections
from tests.export.cells import (
    NAMES,
    apart,
    crowd,
    detections_of,
    disc,
    masks_of,
    picture_of,
    read_table,
    reader_of,
    shapes,
)


def test_the_cells_of_these_tests_have_the_pixels_that_were_asked_for() -> None:
    for window, box, mask in zip(shapes().values(), apart().boxes.int().tolist(), masks_of(apart()), strict=True):
        expected = np.zeros(apart().size, bool)
        expected[box[1] : box[1] + window.shape[0], box[0] : box[0] + window.shape[1]] = window
        np.testing.assert_array_equal(mask, expected)


def test_half_precision_gives_the_same_cells(tmp_path: Path) -> None:
    half = Detections(crowd().boxes, crowd().scores.half(), crowd().labels, crowd().masks.half(), crowd().size)
    write_labels(tmp_path / "a.tif", half)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), crowd().to_labels().numpy())
    write_geojson(tmp_path / "a.geojson", half, NAMES)
    write_rois(tmp_path / "a.zip", half, NAMES)
    write_table(tmp_path / "a.csv", half, NAMES, reader_of(picture_of(crowd().size)))


def test_a_large_picture_is_never_whole_in_memory(tmp_path: Path) -> None:
    size = (24_000, 12_000)  # 576 MB of uint16
    corners = [(5, 5), (11_900, 11_950), (6_128, 6_130)]
    cells = detections_of([disc(10)] * 3, corners, [0.9, 0.8, 0.7], size)
    picture = np.broadcast_to(np.arange(3, dtype=np.uint8), (*size, 3))
    tracemalloc.start()
    write_labels(tmp_path / "a.tif", cells)
    write_geojson(tmp_path / "a.geojson", cells, NAMES)
    write_rois(tmp_path / "a.zip", cells, NAMES)
    write_table(tmp_path / "a.csv", cells, NAMES, lambda y, x, h, w: picture[y : y + h, x : x + w])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        page: Any = tiff.pages[0]
        assert page.shape == size
        counts = np.sum([np.bincount(tile.ravel(), minlength=4) for tile, _, _ in page.segments()], axis=0)
    assert counts[1:].tolist() == [disc(10).sum()] * 3
    last = read_table(tmp_path / "a.csv")[1]
    assert (last["centroid_x"], last["centroid_y"], last["mean_intensity"]) == ("11970.5", "11920.5", "1.0")


WRITERS: dict[str, Callable[[Path, Detections], object]] = {
    "a.tif": write_labels,
    "class1.tif": lambda path, cells: write_class_labels(path.parent, cells, 3),
    "a.geojson": lambda path, cells: write_geojson(path, cells, NAMES),
    "a.zip": lambda path, cells: write_rois(path, cells, NAMES),
    "a.csv": lambda path, cells: write_table(path, cells, NAMES, reader_of(picture_of(cells.size))),
}


def test_no_cells(tmp_path: Path) -> None:
    none = detections_of([], [], [], (33, 86))
    for name, write in WRITERS.items():
        write(tmp_path / name, none)
    for name in ("a.tif", "class1.tif", "class2.tif", "class3.tif"):
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), np.zeros((33, 86), np.uint16))
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == []
    assert (tmp_path / "a.csv").read_text().split() == [",".join(COLUMNS)]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=f"{name}: cannot be written"):
        WRITERS[name](tmp_path / "file" / name, apart())
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: cannot be written"):
        WRITERS[name](tmp_path / name, apart())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", name])
