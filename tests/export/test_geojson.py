"""GeoJSON, compared with full-size masks of the cells and with the rules by which QuPath reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from shapely.geometry import shape

from maskrcnn.export.geojson import write_geojson
from tests.export.cells import NAMES, apart, crowd, masks_of
from tests.structures.test_polygons import rasterise


def check_like_qupath(collection: dict[str, Any]) -> None:
    """The rules of qupath.lib.io.QuPathTypeAdapters and ROITypeAdapters (0.5 to 0.8), where anything else is ignored,
    replaced by a default, or an error."""
    assert collection["type"] == "FeatureCollection"
    ids = [UUID(feature["id"]) for feature in collection["features"]]  # else a random one
    assert len(set(ids)) == len(ids)
    for feature in collection["features"]:
        assert set(feature) == {"type", "id", "geometry", "properties"}
        assert feature["type"] == "Feature"
        properties = feature["properties"]
        assert set(properties) == {"objectType", "name", "classification", "measurements"}
        assert properties["objectType"] == "detection"  # else an annotation, of which QuPath shows few at a time
        assert isinstance(properties["name"], str)
        classification = properties["classification"]
        assert set(classification) == {"name", "color"}  # "names" and "colorRGB" are older
        assert isinstance(classification["name"], str)
        assert len(classification["color"]) == 3
        assert all(type(value) is int and 0 <= value <= 255 for value in classification["color"])
        assert all(isinstance(value, float) for value in properties["measurements"].values())
        assert set(feature["geometry"]) == {"type", "coordinates"}
        geometry = shape(feature["geometry"])  # raises for rings that are not closed
        assert geometry.geom_type in ("Polygon", "MultiPolygon")
        assert geometry.is_valid
        assert geometry.area > 0


def test_geojson_has_a_feature_a_cell_as_qupath_reads_it(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", apart(), NAMES, [(1, 2, 3), (4, 5, 6)])
    collection = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    check_like_qupath(collection)
    assert len(collection["features"]) == len(apart())
    geometries = set()
    for index, (feature, mask) in enumerate(zip(collection["features"], masks_of(apart()), strict=True)):
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
        np.testing.assert_array_equal(
            np.any([rasterise([*map(np.array, rings)], apart().size) for rings in parts], axis=0), mask
        )
    assert geometries == {"Polygon", "MultiPolygon"}


def test_a_cell_without_pixels_is_no_feature_and_the_others_keep_their_ids(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", crowd(), NAMES)
    features = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))["features"]
    assert [feature["properties"]["name"] for feature in features] == [str(i) for i in range(1, 61) if i != 8]


def test_the_same_cell_has_the_same_id_in_every_run_but_not_in_another_picture(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "a", "b"):
        write_geojson(tmp_path / f"{name}.geojson", apart(), NAMES)
        features = json.loads((tmp_path / f"{name}.geojson").read_text(encoding="utf-8"))["features"]
        ids.append({feature["id"] for feature in features})
    assert ids[0] == ids[1]
    assert not ids[0] & ids[2]


def test_names_of_classes_may_be_anything(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", apart(), ["\udcff", '"}]', "two\nlines"])
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    names = {feature["properties"]["classification"]["name"] for feature in features}
    assert names == {r"\udcff", '"}]', r"two\nlines"}
