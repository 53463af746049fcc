"""The folder of an inference run: the files of each picture, and which pictures are done.

``infer.json`` contains the options that affect the cells. ``cells/<key>.json``, a picture's record, contains its cells:
it is written after the picture's other files, so that its existence means that they are complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from maskrcnn.checkpoint import locate, versions
from maskrcnn.data.json_file import read_json
from maskrcnn.errors import InputError, writing
from maskrcnn.export.coco import RESULTS, SUBMISSION
from maskrcnn.export.config import InferConfig
from maskrcnn.export.jobs import Job, source_of
from maskrcnn.export.names import file_stem
from maskrcnn.files import to_json, write_text
from maskrcnn.options import plain

CELLS, OPTIONS, REPORT = "cells", "infer.json", "report.html"

FILES: dict[str, str] = {
    "labels": "labels/{}.tif",
    "class-labels": "class-labels/{}",
    "geojson": "geojson/{}.geojson",
    "rois": "rois/{}.zip",
    "csv": "csv/{}.csv",
    "overlay": "overlays/{}.png",
}
"""Files of a picture by format."""

COMPARED = (
    "tile",
    "overlap",
    "augment",
    "level",
    "channels",
    "precision",
    "diameter",
    "pixel_size",
    "score_threshold",
    "box_score_threshold",
)
"""The options that affect the cells, besides the checkpoint."""


def file_of(folder: Path, key: str, format: str) -> Path:
    """The file of a picture in one format of :data:`FILES`; for class labels the folder."""
    return folder / FILES[format].format(file_stem(key))


def record_of(folder: Path, key: str) -> Path:
    """The file of a picture's record."""
    return folder / CELLS / f"{file_stem(key)}.json"


def default_folder(checkpoint: Path) -> Path:
    """The default folder for results: that of the checkpoint, or ``predictions/`` for a model of the package."""
    path = locate(checkpoint)
    return path.parent if path == checkpoint else Path("predictions")


def begin(config: InferConfig, folder: Path, jobs: Sequence[Job], classes: dict[str, Any]) -> list[Job]:
    """Write the run's options into the folder and return the pictures that are not done yet.

    ``classes`` are written too, for ``maskrcnn convert``: ``class_names``, and ``least_scores`` of shown cells.

    With ``--overwrite``, results of other options are removed before anything is predicted, also the files for all
    pictures together, so that all results in the folder have the same options even if the run is stopped. So are the
    files, in all formats, of a picture whose record is of another file or of an earlier version of it.

    Raises:
        InputError: the folder holds results of other or unknown options and ``--overwrite`` was not given, or it cannot
            be written.
    """
    digest = hashlib.sha256(locate(config.checkpoint).read_bytes()).hexdigest()
    options = {"checkpoint": digest, **{name: plain(getattr(config, name)) for name in COMPARED}}
    with writing(folder):
        done = {record.stem for record in (folder / CELLS).glob("*.json") if record.is_file()}
    other = _other_options(folder / OPTIONS, options) if done else ""
    if other and not config.overwrite:
        raise InputError(f"{folder}: holds results of {other}; choose another --out, or --overwrite")
    if config.overwrite:
        for stem in done if other else done & {file_stem(job.key) for job in jobs}:
            remove_results(folder, stem)
    if other:
        for name in (RESULTS, SUBMISSION, REPORT):
            with writing(folder / name):
                (folder / name).unlink(missing_ok=True)
    write_text(folder / OPTIONS, to_json({**options, **classes, "versions": versions()}, indent=2) + "\n")
    todo = []
    for job in jobs:
        source, record = source_of(job), read_record(folder, job.key)
        if record is not None and record["source"] == source:
            if _is_complete(folder, job, config, record):
                continue
        elif source is not None:
            remove_results(folder, job.key)
        todo.append(job)
    return todo


def _other_options(path: Path, options: dict[str, Any]) -> str:
    """The options that differ from those in ``infer.json`` of the earlier run, for a message; "" if none."""
    earlier = _read_json(path)
    if not isinstance(earlier, dict):
        return f"unknown options ({path.name} is missing or damaged)"
    names = [name for name, value in options.items() if earlier.get(name) != value]
    return f"another {', '.join(names)}" if names else ""


def _is_complete(folder: Path, job: Job, config: InferConfig, record: dict[str, Any]) -> bool:
    """Whether a picture with this record has its results in all formats."""
    if not all(file_of(folder, job.key, name).exists() for name in config.format if name in FILES):
        return False
    return "zarr" not in config.format or record.get("zarr", False)


def read_record(folder: Path, key: str) -> dict[str, Any] | None:
    """A picture's record; None if it is missing or damaged, so that the picture has to be predicted (again)."""
    record = _read_json(record_of(folder, key))
    kinds = {"name": str, "source": list, "height": int, "width": int, "diameter": float | int | None, "results": list}
    if not isinstance(record, dict) or any(not isinstance(record.get(name, ...), kind) for name, kind in kinds.items()):
        return None
    size = [record["height"], record["width"]]
    return record if all(_is_result(result, size) for result in record["results"]) else None


def _is_result(result: Any, size: list[int]) -> bool:
    """Whether ``result`` is a COCO result of a picture of ``size`` [H, W], as written by ``Detections.to_coco``."""
    if not isinstance(result, dict) or not {"category_id", "bbox", "score", "segmentation"} <= set(result):
        return False
    rle = result["segmentation"]
    return isinstance(rle, dict) and rle.get("size") == size and isinstance(rle.get("counts"), str)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except InputError:
        return None


def remove_results(folder: Path, key: str, formats: Iterable[str] = ()) -> None:
    """Remove the results of a picture: all if there is a record, else only the files of ``formats``.

    Files without a record may come from elsewhere. Raises InputError if a file cannot be removed.
    """
    record = record_of(folder, key)
    with writing(record):
        for name in FILES if record.is_file() else [name for name in formats if name in FILES]:
            path = file_of(folder, key, name)
            for written in path.glob("class*.tif") if name == "class-labels" else [path]:
                if written.is_file():
                    written.unlink()
        if record.is_file():
            record.unlink()
