"""Outlines and GeoJSON, compared with full-size masks of the cells."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import polygon2mask

from maskrcnn.export.geojson import polygons, write_geojson
from tests.export.cells import NAMES, SIDE, apart, crowd, masks_of, shapes


def unit_edges(ring: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """The pixels' edges along a ring, each as the two points of the grid, the lower first."""
    edges = []
    for (x, y), (next_x, next_y) in pairwise(ring):
        steps = max(abs(next_x - x), abs(next_y - y))
        dx, dy = (next_x - x) // steps, (next_y - y) // steps
        for i in range(steps):
            a, b = (x + i * dx, y + i * dy), (x + (i + 1) * dx, y + (i + 1) * dy)
            edges.append((*min(a, b), *max(a, b)))
    return edges


def rasterise(rings: list[list[tuple[int, int]]], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie in the first ring and in no other, by scikit-image's test of points in polygons."""
    outline, *holes = (polygon2mask(size, np.array(ring)[:, ::-1] - 0.5) for ring in rings)
    for hole in holes:
        assert outline[hole].all(), "a hole outside of the outline"
        outline = outline & ~hole
    return outline


@pytest.mark.parametrize("name", [*shapes(), *range(40)])
def test_outlines_are_the_edges_of_the_pixels(name: str | int) -> None:
    mask = shapes()[name] if isinstance(name, str) else np.random.default_rng(name).random((6, 5)) < 0.6
    top, left, size = 7, 11, (SIDE + 9, SIDE + 13)
    full = np.zeros(size, bool)
    full[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    parts = polygons(top, left, mask)
    drawn = [rasterise(rings, size) for rings in parts]
    np.testing.assert_array_equal(np.sum(drawn, axis=0), full)  # each pixel in one polygon
    assert len(parts) == ndimage.label(full)[1]
    for rings in parts:
        for place, ring in enumerate(rings):
            assert ring[0] == ring[-1]
            assert len(set(ring)) == len(ring) - 1 >= 4
            x, y = np.array(ring).T
            area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
            assert (area > 0) == (place == 0)
    padded = np.pad(full, 1)
    down = np.argwhere(padded[:, 1:] != padded[:, :-1])  # between the pixels x and x + 1, of which x = -1 is padding
    across = np.argwhere(padded[1:] != padded[:-1])
    expected = [(x, y - 1, x, y) for y, x in down.tolist()] + [(x - 1, y, x, y) for y, x in across.tolist()]
    assert sorted(edge for rings in parts for ring in rings for edge in unit_edges(ring)) == sorted(expected)


def test_a_pixel_is_a_square_and_no_pixels_are_no_polygon() -> None:
    (((*corners, last),),) = polygons(3, 5, np.ones((1, 1), bool))
    assert last == corners[0]
    start = corners.index((5, 3))
    assert corners[start:] + corners[:start] == [(5, 3), (6, 3), (6, 4), (5, 4)]
    assert polygons(0, 0, np.zeros((0, 0), bool)) == []


def test_geojson_has_a_feature_a_cell_as_qupath_reads_it(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", apart(), NAMES, [(1, 2, 3), (4, 5, 6)])
    collection = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(apart())
    geometries = set()
    for index, (feature, mask) in enumerate(zip(collection["features"], masks_of(apart()), strict=True)):
        assert (feature["type"], feature["id"]) == ("Feature", index + 1)
        properties = feature["properties"]
        assert (properties["objectType"], properties["name"]) == ("detection", str(index + 1))
        color = [[1, 2, 3], [4, 5, 6], [1, 2, 3]][index % 3]
        assert properties["classification"] == {"name": NAMES[index % 3], "color": color}
        assert properties["measurements"]["score"] == pytest.approx(float(apart().scores[index]), abs=1e-6)
        geometry = feature["geometry"]
        geometries.add(geometry["type"])
        several = geometry["type"] == "MultiPolygon"
        parts = geometry["coordinates"] if several else [geometry["coordinates"]]
        assert several == (len(parts) > 1)
        np.testing.assert_array_equal(np.any([rasterise(rings, apart().size) for rings in parts], axis=0), mask)
    assert geometries == {"Polygon", "MultiPolygon"}


def test_a_cell_without_pixels_is_no_feature_and_the_others_keep_their_ids(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", crowd(), NAMES)
    features = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    assert [feature["id"] for feature in features] == [i for i in range(1, 61) if i != 8]


def test_names_of_classes_may_be_anything(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", apart(), ["\udcff", '"}]', "two\nlines"])
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    names = {feature["properties"]["classification"]["name"] for feature in features}
    assert names == {r"\udcff", '"}]', r"two\nlines"}
