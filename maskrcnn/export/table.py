"""Writes a table of the cells of a picture: position, class, shape and intensity."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import regionprops
from torch import Tensor

from maskrcnn.export.labels import classes_of
from maskrcnn.files import atomic_write, printable
from maskrcnn.structures import Cells, Detections
from maskrcnn.structures.rle import cell_boxes, cell_window

BLOCK = 1024
"""Side in pixels of the blocks of the picture whose cells are measured together, with one read."""

MEASURES = ("centroid_x", "centroid_y", "area", "x1", "y1", "x2", "y2", "perimeter", "eccentricity", "mean_intensity")
COLUMNS = ("id", "class", "class_name", "score", *MEASURES)
LENGTHS = ("centroid_x", "centroid_y", "x1", "y1", "x2", "y2", "perimeter")
MICROMETRES = {"area": "area_um2", **{name: f"{name}_um" for name in LENGTHS}}
"""Columns in micrometres of measures in pixels."""

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of formulas; the last four are the full-width forms of Japanese input methods."""

ReadRegion = Callable[[int, int, int, int], Tensor | npt.NDArray[Any]]
"""(top, left, height, width) inside the picture -> pixels [height, width] or [height, width, channels]."""


def write_table(
    path: Path,
    detections: Detections | Cells,
    class_names: Sequence[str],
    read_region: ReadRegion,
    micrometres: float | None = None,
) -> None:
    """Write a CSV with one row per cell, in the order of the detections.

    Columns: ``id`` (i + 1 for detection i, as in the label image and GeoJSON), ``class`` (1..K), ``class_name``,
    ``score``; in pixels ``centroid_x`` and ``centroid_y``, ``area`` (number of pixels), ``x1``, ``y1``, ``x2``, ``y2``
    (bounds of the cell's pixels, not the network's box) and ``perimeter`` (scikit-image's estimate);
    ``eccentricity`` of the ellipse with the same second moments (0 for a disc, below 1); ``mean_intensity`` over the
    cell's pixels and channels, in the units of ``read_region``. Pixel i covers [i, i+1), so that the centroid of
    a single pixel is i + 0.5 and its bounds are i and i + 1. Pixels in which cells overlap count for all of them.

    Where the pixel size is known, columns with all lengths, positions and areas in micrometres follow: ``area_um2``,
    ``centroid_x_um``, ...

    A cell without pixels has a row with area 0 and the other measures empty. Names of classes are escaped by
    :func:`write_csv`.

    Args:
        path: the file; replaced when the new one is complete.
        detections: the cells of one picture, on any device.
        class_names: names of classes 1..K.
        read_region: reads the picture's pixels; called once per block of 1024x1024 pixels that has cells, for the
            region that they cover, from top to bottom.
        micrometres: the side of a pixel; None: unknown, and there are no columns in micrometres.

    Raises:
        InputError: the file cannot be written, or ``read_region`` raises it.
        ValueError: a detection's class is not in 1..K, or ``read_region`` returns another shape.
    """
    classes = classes_of(detections, len(class_names))
    rows = _measure(detections.to_rle(), read_region)
    cells = zip(classes, detections.scores.tolist(), rows, strict=True)
    scales = {} if micrometres is None else {name: micrometres ** (1 + (name == "area")) for name in MICROMETRES}
    write_csv(
        path,
        (*COLUMNS, *(MICROMETRES[name] for name in scales)),
        (
            (
                index,
                number,
                class_names[number - 1],
                round(score, 6),
                *(row.get(name, "") for name in MEASURES),
                *(float(f"{row[name] * scale:.7g}") if name in row else "" for name, scale in scales.items()),
            )
            for index, (number, score, row) in enumerate(cells, start=1)
        ),
    )


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
    """Write a CSV (UTF-8) whose texts are safe from being executed as formulas by spreadsheets.

    Names of classes and files are untrusted, and Excel, LibreOffice and Google Sheets execute cells that begin with
    ``=``, ``+``, ``-`` or ``@``, quoted or not. As OWASP recommends ("CSV Injection"), such a text is prefixed with an
    apostrophe, and all texts are quoted, so that ``,`` or ``;`` in them cannot start another cell; tabs and line ends
    are escaped by :func:`~maskrcnn.files.printable`. :func:`pandas.read_csv` reads numbers as numbers, empty
    cells as NaN, and texts unchanged except for the apostrophe and the escapes.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(columns)
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        for row in rows:
            writer.writerow([_escape_formula(value) if isinstance(value, str) else value for value in row])


def _escape_formula(text: str) -> str:
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown


def _measure(rles: list[dict[str, Any]], read_region: ReadRegion) -> list[dict[str, float]]:
    """Measure every cell, block by block of the picture; returns the measures by name."""
    rows: list[dict[str, float]] = [{"area": 0} for _ in rles]
    boxes = cell_boxes(rles)
    blocks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (top, left, bottom, _) in enumerate(boxes.tolist()):
        if bottom > top:
            blocks[top // BLOCK, left // BLOCK].append(index)
    for _, indices in sorted(blocks.items()):
        top, left = boxes[indices, :2].min(axis=0).tolist()
        bottom, right = boxes[indices, 2:].max(axis=0).tolist()
        pixels = _read(read_region, top, left, bottom - top, right - left)
        for index in indices:
            rows[index] = _measure_cell(rles[index], pixels, top, left)
    return rows


def _read(read_region: ReadRegion, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]:
    pixels = np.asarray(read_region(top, left, height, width))
    if pixels.ndim not in (2, 3) or pixels.shape[:2] != (height, width):
        raise ValueError(
            f"read_region: returned an array of shape {pixels.shape}, expected {height, width} (and channels)"
        )
    return pixels


def _measure_cell(rle: dict[str, Any], pixels: npt.NDArray[Any], pixels_top: int, pixels_left: int) -> dict[str, float]:
    """The measures of a cell; ``pixels`` is the region of the picture at ``pixels_top``, ``pixels_left``."""
    top, left, mask = cell_window(rle)
    height, width = mask.shape
    (region,) = regionprops(mask.astype(np.uint8))
    y, x = region.centroid  # relative to the centre of the window's first pixel
    inside = pixels[top - pixels_top :, left - pixels_left :][:height, :width][mask]
    return {
        "centroid_x": round(float(left + x + 0.5), 3),
        "centroid_y": round(float(top + y + 0.5), 3),
        "area": int(region.area),
        "x1": left,
        "y1": top,
        "x2": left + width,
        "y2": top + height,
        "perimeter": round(float(region.perimeter), 3),
        "eccentricity": round(float(region.eccentricity), 4),
        "mean_intensity": round(float(inside.mean()), 3),
    }
