"""An inference run from options to files: a folder of pictures that can be stopped, gone on with, and shared out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.checkpoint import locate
from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.id_mapping import TestImage
from maskrcnn.data.joined import JoinedDataset
from maskrcnn.data.picture import Picture
from maskrcnn.device import choose_device
from maskrcnn.errors import InputError, writing
from maskrcnn.export.coco import write_results
from maskrcnn.export.config import InferConfig
from maskrcnn.export.geojson import write_geojson
from maskrcnn.export.jobs import Job, Opener, find_jobs, source_of
from maskrcnn.export.labels import write_class_labels, write_labels
from maskrcnn.export.overlay import draw_overlay
from maskrcnn.export.report import ReportPicture, write_report
from maskrcnn.export.table import write_table
from maskrcnn.files import atomic_write
from maskrcnn.predict.predictor import Predictor, load
from maskrcnn.structures import Detections

CELLS, FAILURES, OPTIONS, REPORT = "cells", "failures.csv", "infer.json", "report.html"
THUMBNAIL, OVERLAY = 1024, 1600
PATIENCE = timedelta(days=7)
"""How long processes wait for the one whose slide is the largest."""

_FILES: dict[str, str] = {
    "labels": "labels/{}.tif",
    "class-labels": "class-labels/{}",
    "geojson": "geojson/{}.geojson",
    "csv": "csv/{}.csv",
    "overlay": "overlays/{}.png",
}


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its folder, the number of cells, and what went wrong with which picture."""

    folder: Path
    cells: int
    failures: dict[str, str]


def infer(config: InferConfig) -> Outcome:
    """Predict every picture and write what ``--format`` and ``--report`` ask for.

    A picture is done once ``cells/<name>.json`` is there, which is written after its other files: a run that was
    stopped goes on with the next one. It names the file that it is of, which is predicted anew where it is another or
    was changed since. A picture that cannot be read is passed over, and named in ``failures.csv``.
    Processes that torchrun started share the pictures out; process 0 puts the results together.

    Raises:
        InputError: options, the id mapping, the checkpoint or the output folder cannot be used, or the folder holds
            results of other options.
    """
    config.check()
    device = choose_device(config.device)
    with distributed.processes(device, PATIENCE):
        jobs = find_jobs(config)
        predictor = load(
            config.checkpoint,
            config.device,
            config.precision,
            config.tile,
            config.overlap,
            config.batch_size,
            config.augment,
            config.box_score_threshold,
        )
        if config.diameter not in (None, "none") and predictor.diameter is None:
            raise InputError(
                f"--diameter is {config.diameter}, but {config.checkpoint} was trained at the pictures' own scale; "
                "expected none"
            )
        folder = config.out if config.out is not None else default_folder(config.checkpoint)
        todo = distributed.from_main(lambda: _prepare(config, folder, jobs))
        own = todo[distributed.rank() :: distributed.world_size()]
        failures: dict[str, str] = {}
        for part in distributed.from_all(_predict_all(config, predictor, own, folder)):
            failures |= part
        cells = distributed.from_main(lambda: _finish(config, predictor, jobs, folder, failures))
        return Outcome(folder, cells, failures)


def default_folder(checkpoint: Path) -> Path:
    """Where results go if nothing is said: beside the checkpoint of a run, else into ``predictions/``."""
    path = locate(checkpoint)
    return path.parent if path == checkpoint else Path("predictions")


def _prepare(config: InferConfig, folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """Create the folder and keep the options that the cells depend on; returns the pictures that are not done yet.

    Raises InputError for results of other options; with ``--overwrite`` they are given up before anything is
    predicted, so that what a run that is stopped leaves behind is all of one kind.
    """
    digest = hashlib.sha256(locate(config.checkpoint).read_bytes()).hexdigest()
    names = (
        "tile",
        "overlap",
        "augment",
        "level",
        "channels",
        "precision",
        "diameter",
        "score_threshold",
        "box_score_threshold",
    )
    options = {"checkpoint": digest, **{name: getattr(config, name) for name in names}}
    text = json.dumps(options, indent=2) + "\n"
    path = folder / OPTIONS
    with writing(folder):
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
        last = json.loads(path.read_text()) if path.exists() else {}
        other = [name for name, value in json.loads(text).items() if last and last.get(name) != value]
        if other and not config.overwrite:
            raise InputError(
                f"{folder}: holds results of another {', '.join(other)}; choose another --out, or --overwrite"
            )
        if config.overwrite:
            before = {record.stem for record in (folder / CELLS).glob("*.json")}
            for key in before if other else before & {job.key for job in jobs}:
                _remove_results(folder, key)
        _write_text(path, text)
    return [job for job in jobs if not _is_done(folder, job, config)]


def _is_done(folder: Path, job: Job, config: InferConfig) -> bool:
    record = folder / CELLS / f"{job.key}.json"
    files = [record, *(folder / _FILES[name].format(job.key) for name in config.format if name in _FILES)]
    if not all(file.exists() for file in files):
        return False
    source = source_of(job)
    return source is not None and json.loads(record.read_text()).get("source") == source


def _predict_all(config: InferConfig, predictor: Predictor, jobs: Sequence[Job], folder: Path) -> dict[str, str]:
    """Predict the pictures and write their files, the last one's while the network works on the next; returns what
    went wrong, by key."""
    failures: dict[str, str] = {}
    main = distributed.is_main()
    open_page = Opener(config, predictor.percentiles)
    with ThreadPoolExecutor(1) as pool:
        writing_last: Future[None] | None = None
        for job in tqdm(jobs, desc="infer", unit="picture", disable=not main):
            source = source_of(job)
            try:
                picture = open_page(job)
                with tqdm(desc=picture.name, unit="tile", leave=False, disable=not main, delay=2) as bar:

                    def show(done: int, total: int, bar: Any = bar) -> None:
                        bar.total = total
                        bar.update(done - bar.n)

                    detections = predictor.predict(picture, show, config.diameter)
            except InputError as error:
                failures[job.key] = str(error)
                _remove_results(folder, job.key)
                tqdm.write(f"warning: passed over: {error}", file=sys.stderr)
                continue
            if writing_last is not None:
                writing_last.result()
            writing_last = pool.submit(_write, config, predictor, job, source, picture, detections, folder)
        if writing_last is not None:
            writing_last.result()
    return failures


def _remove_results(folder: Path, key: str) -> None:
    """What an earlier run wrote of a picture; nothing where ``cells/`` has no record of it."""
    record = folder / CELLS / f"{key}.json"
    if not record.exists():
        return
    with writing(folder):
        for file in _FILES.values():
            path = folder / file.format(key)
            for written in path.glob("class*.tif") if path.is_dir() else [path]:
                written.unlink(missing_ok=True)
        record.unlink()


def _write(
    config: InferConfig,
    predictor: Predictor,
    job: Job,
    source: list[str | int] | None,
    picture: Picture,
    detections: Detections,
    folder: Path,
) -> None:
    """All files of one picture; ``cells/<key>.json`` comes last, for it says that the others are there."""
    names, wanted = predictor.class_names, config.format
    paths = {name: folder / file.format(job.key) for name, file in _FILES.items()}
    score_threshold = _score_threshold(config, predictor)
    shown = detections.filter(score_threshold)
    if "labels" in wanted:
        write_labels(paths["labels"], shown)
    if "class-labels" in wanted:
        write_class_labels(paths["class-labels"], shown, len(names))
    if "geojson" in wanted:
        write_geojson(paths["geojson"], shown, names)
    if "csv" in wanted:
        write_table(paths["csv"], shown, names, picture.raw)
    if "overlay" in wanted:
        overlay = draw_overlay(picture.reduced(OVERLAY), shown, names, score_threshold)
        with atomic_write(paths["overlay"]) as beside:
            overlay.save(beside, "PNG", optimize=True)
    height, width = picture.size
    results = detections.to_coco(job.image_id)
    record = {
        "name": picture.name,
        "source": source,
        "height": height,
        "width": width,
        "diameter": detections.diameter,
        "results": results,
    }
    _write_text(folder / CELLS / f"{job.key}.json", json.dumps(record))


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as beside:
        beside.write_bytes(text.encode())


def _finish(
    config: InferConfig, predictor: Predictor, jobs: Sequence[Job], folder: Path, failures: dict[str, str]
) -> int:
    """The files about all pictures together; returns the number of cells."""
    done = [job for job in jobs if job.key not in failures]
    records = {job.key: json.loads((folder / CELLS / f"{job.key}.json").read_text()) for job in done}
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("picture", "error"), *sorted(failures.items())])
    if failures:
        _write_text(folder / FAILURES, table.getvalue())
    else:
        with writing(folder):
            (folder / FAILURES).unlink(missing_ok=True)
    for job in done:
        for result in records[job.key]["results"]:
            result["image_id"] = job.image_id  # an earlier run may have had other pictures before this one
    results = [result for record in records.values() for result in record["results"]]
    written: list[Path] = []
    if "coco" in config.format:
        images = [
            TestImage(job.path, job.file_name, job.image_id, records[job.key]["height"], records[job.key]["width"])
            for job in done
        ]
        written += write_results(folder, results, images, predictor.category_ids)
    if config.report:
        pictures = _report_pictures(config, predictor, done, records)
        score_threshold = min(_score_threshold(config, predictor))  # the page has one threshold for all classes
        write_report(folder / REPORT, pictures, predictor.class_names, score_threshold=score_threshold)
        written.append(folder / REPORT)
    lowest = _score_threshold(config, predictor)
    shown = sum(result["score"] >= lowest[result["category_id"] - 1] for result in results)
    print(
        f"{shown} cells in {len(done)} pictures, {len(results) - shown} more of lower scores: "
        f"{', '.join(map(str, written)) or folder}"
    )
    _say_diameters([records[job.key].get("diameter") for job in done])
    if failures:
        print(f"{len(failures)} pictures were passed over: {folder / FAILURES}", file=sys.stderr)
    return len(results)


def _truth(folder: Path, class_names: Sequence[str]) -> CellDataset:
    """The true cells for the report; for a network of one class all of theirs are taken as one."""
    if len(class_names) == 1:
        return JoinedDataset([Hw3Folder(folder)], merge_classes=class_names[0])
    return Hw3Folder(folder, num_classes=len(class_names))


def _say_diameters(diameters: Sequence[float | None]) -> None:
    """How large the cells were taken to be, in one line."""
    known = [diameter for diameter in diameters if diameter is not None]
    if not known:
        return
    low, median, high = np.quantile(known, (0, 0.5, 1))
    unknown = len(diameters) - len(known)
    print(
        f"cells taken to be {median:.0f} pixels across ({low:.0f} to {high:.0f} in {len(known)} pictures; in {CELLS}/)"
        + (f"; {unknown} pictures at their own scale" if unknown else "")
    )


def _score_threshold(config: InferConfig, predictor: Predictor) -> tuple[float, ...]:
    """The lowest score of a cell that is shown, for each class."""
    return (
        predictor.score_threshold
        if config.score_threshold is None
        else (config.score_threshold,) * len(predictor.class_names)
    )


def _report_pictures(
    config: InferConfig, predictor: Predictor, jobs: Sequence[Job], records: dict[str, Any]
) -> Iterator[ReportPicture]:
    truth = None if config.truth is None else _truth(config.truth, predictor.class_names)
    open_page = Opener(config, predictor.percentiles)
    for job in jobs:
        picture, record = open_page(job), records[job.key]
        cells = None
        if truth is not None:
            if job.key not in truth.names:
                raise InputError(f"--truth {config.truth}: no folder {job.key} for {job.path}")
            labels = truth.read_labels(truth.names.index(job.key))
            cells = [
                {"category_id": category, "segmentation": {**rle, "counts": rle["counts"].decode()}, "area": area}
                for rle, category, area in zip(
                    labels.to_rle(), labels.classes.tolist(), labels.areas.tolist(), strict=True
                )
            ]
        thumbnail = picture.reduced(THUMBNAIL)
        yield ReportPicture(picture.name, picture.size, record["results"], thumbnail, cells)
