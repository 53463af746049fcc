"""Writes the outlines of cells as GeoJSON for QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from maskrcnn.export.labels import classes_of
from maskrcnn.files import atomic_write, printable
from maskrcnn.report.outlines import COLORS
from maskrcnn.structures import Cells, Detections
from maskrcnn.structures.polygons import polygons
from maskrcnn.structures.rle import BATCH


def write_geojson(
    path: Path,
    detections: Detections | Cells,
    class_names: Sequence[str],
    colors: Sequence[tuple[int, int, int]] = COLORS,
) -> None:
    """Write a FeatureCollection (RFC 7946), one feature per cell, with outlines in pixels of the picture.

    The properties are those that QuPath 0.4 or newer reads: ``objectType`` "detection", ``classification`` with name
    and colour, ``name`` and the measurement "score". The name is i + 1 for detection i, its id in the label image and
    the table. QuPath takes only a UUID as a feature's ``id``: it is made from the file's name and i + 1, so that the
    same cell has the same one in each run. Outlines follow the edges of the pixels: they enclose those of the label
    image, but cells may overlap. Cells without pixels get no feature; the ids of the others do not change.

    Args:
        path: the file; replaced when the new one is complete.
        detections: the cells of one picture, on any device.
        class_names: names of classes 1..K.
        colors: RGB, 0..255, of classes 1, 2, ...; repeated if there are more classes.

    Raises:
        InputError: the file cannot be written.
        ValueError: a detection's class is not in 1..K.
    """
    classes = classes_of(detections, len(class_names))
    classifications = [
        {"name": printable(name), "color": colors[number % len(colors)]} for number, name in enumerate(class_names)
    ]
    encode = json.JSONEncoder(separators=(",", ":")).encode
    scores = [round(score, 6) for score in detections.scores.tolist()]
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for index, geometry in _geometries(detections.to_rle()):
            feature = {
                "type": "Feature",
                "id": str(uuid5(NAMESPACE_URL, f"{printable(path.name)}#{index + 1}")),
                "geometry": geometry,
                "properties": {
                    "objectType": "detection",
                    "name": str(index + 1),
                    "classification": classifications[classes[index] - 1],
                    "measurements": {"score": scores[index]},
                },
            }
            file.write(separator + encode(feature))
            separator = ",\n"
        file.write("\n]}\n")


def _geometries(rles: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Index and geometry of each cell that has pixels."""
    for first in range(0, len(rles), BATCH):
        for index, parts in enumerate(polygons(rles[first : first + BATCH]), start=first):
            coordinates = [[ring.tolist() for ring in part] for part in parts]
            if len(parts) == 1:
                yield index, {"type": "Polygon", "coordinates": coordinates[0]}
            elif parts:
                yield index, {"type": "MultiPolygon", "coordinates": coordinates}
