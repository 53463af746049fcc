"""Opens results and example pictures in napari."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from maskrcnn import pretrained
from maskrcnn.export.run_folder import CELLS, FILES, OPTIONS

Layer = tuple[Any, dict[str, Any], str]
"""Data, arguments and type of a layer, as napari's readers return them."""


def get_reader(path: str | list[str]) -> Callable[[Any], list[Layer]] | None:
    """The reader for a run folder of ``maskrcnn predict --format labels``, or a label image in one; None for others.

    Only files in ``labels/`` of a folder with results are taken: every other TIFF is left to napari's own readers.
    """
    if isinstance(path, list):
        return None  # slices of one stack
    file = Path(path)
    if _is_run_folder(file):
        return lambda _: [_labels_of(each) for each in sorted((file / "labels").glob("*.tif"))]
    if file.parent.name == "labels" and _is_run_folder(file.parent.parent):
        return lambda _: [_labels_of(file)]
    return None


def _is_run_folder(folder: Path) -> bool:
    return (folder / OPTIONS).is_file() and (folder / CELLS).is_dir() and (folder / "labels").is_dir()


def _labels_of(path: Path) -> Layer:
    """A Labels layer; its features are the rows of the picture's table, if that was written too (``--format csv``)."""
    arguments: dict[str, Any] = {"name": f"{path.stem} cells"}
    table = path.parent.parent / FILES["csv"].format(path.stem)
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        arguments["features"] = features(
            [int(row["id"]) for row in rows], [row["class_name"] for row in rows], [float(row["score"]) for row in rows]
        )
    return tifffile.imread(path), arguments, "labels"


def features(ids: list[int], classes: list[str], scores: list[float]) -> dict[str, Any]:
    """A table for a Labels layer: id, class and score of each cell, shown under the cursor."""
    return {"index": np.array(ids, np.int64), "class": np.array(classes, object), "score": np.array(scores).round(3)}


def _example(name: str) -> list[Layer]:
    path = Path(pretrained.__file__).parent / "examples" / f"{name}.png"
    return [(np.asarray(Image.open(path).convert("RGB")), {"name": name, "rgb": True}, "image")]


fluorescence, tissue, smear = (partial(_example, name) for name in ("fluorescence", "tissue", "smear"))
