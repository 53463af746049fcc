"""An inference run from options to files: a folder of pictures that can be stopped, gone on with, and shared out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from maskrcnn.data.hw3 import IMAGE, Hw3Folder, TestImage, read_test_release
from maskrcnn.data.picture import Picture, open_pictures
from maskrcnn.data.tiff import check_channels, is_tiff, readable
from maskrcnn.engine import distributed
from maskrcnn.engine.device import choose_device, keep_freed_memory
from maskrcnn.errors import InputError, writing
from maskrcnn.files import replacing
from maskrcnn.model import Detections
from maskrcnn.predict.augment import Augment
from maskrcnn.predict.export import write_results
from maskrcnn.predict.geojson import write_geojson
from maskrcnn.predict.labels import write_class_labels, write_labels
from maskrcnn.predict.overlay import draw_overlay
from maskrcnn.predict.predictor import Predictor, load
from maskrcnn.predict.report import ReportPicture, write_report
from maskrcnn.predict.table import write_table

PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
CELLS, FAILURES, OPTIONS, REPORT = "cells", "failures.csv", "infer.json", "report.html"
THUMBNAIL, OVERLAY = 1024, 1600
PATIENCE = timedelta(days=7)
"""How long processes wait for the one whose slide is the largest."""

Format = Literal["coco", "labels", "class-labels", "geojson", "csv", "overlay"]
_FILES: dict[str, str] = {
    "labels": "labels/{}.tif",
    "class-labels": "class-labels/{}",
    "geojson": "geojson/{}.geojson",
    "csv": "csv/{}.csv",
    "overlay": "overlays/{}.png",
}


@dataclass(frozen=True)
class InferConfig:
    """Find, outline and classify the cells in pictures with a trained Mask R-CNN."""

    checkpoint: Path
    """best.pt (or last.pt) of a run of train.py."""
    data: Path | None = None
    """Folder with test_release/*.tif and test_image_name_to_ids.json."""
    images: tuple[Path, ...] = ()
    """Pictures, or folders of pictures (TIFF, PNG, JPEG) or of <name>/image.tif, instead of --data; they, and the pages
    of stacks, get the ids 1, 2, ... in order."""
    out: Path | None = None
    """Where the results go; default: the checkpoint's folder."""
    format: tuple[Format, ...] = ("coco", "overlay")
    """What is written: coco: test-results.json and submission.zip; labels: a label TIFF a picture; class-labels: one a
    class (<name>/class1.tif, ...); geojson: outlines for QuPath; csv: a row of measurements a cell; overlay: the
    outlines drawn on the picture."""
    report: bool = False
    """Write report.html: counts, histograms and all pictures with outlines to switch on and off."""
    truth: Path | None = None
    """Folder of <name>/class1.tif, ... (as in train/) with the true cells of the pictures, which the report scores."""
    min_score: float = 0.5
    """Lowest score of a cell in labels, GeoJSON, tables and overlays (coco and the report hold all of them)."""
    least_score: float | None = None
    """Lowest score of a cell at all, also in coco and the report; default: 0.05. A higher one saves the work of the
    masks of cells that the other formats leave out, which on a slide are most."""
    tile: int | None = None
    """Side in pixels of the tiles in which larger pictures are predicted; default: from the device's memory."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share: more than the largest cell; default: 128, at most half of a tile."""
    batch_size: int | None = None
    """Tiles that go through the network together; default: 1 on a CPU, 4 on a GPU."""
    augment: Augment = "none"
    """Average the cells of several views of each picture: its mirror images (flips, 4 times the work), also turned by
    90 degrees (rotations, 8 times), also at 4/5 and 5/4 of the size (scales, 10 times)."""
    level: int = 0
    """Level of a pyramid, 0 being the full size."""
    channels: tuple[int, ...] | None = None
    """Which channels (from 0) of a file of several are red, green and blue; one alone is grey."""
    overwrite: bool = False
    """Predict all pictures anew, also those that an earlier run has finished."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where it is available."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs, and on CPUs (AVX-512 BF16, AMX), that compute in it; else fp32."""

    def check(self) -> None:
        """Raises InputError for options that no picture could be predicted with."""
        if (self.data is None) == (not self.images):
            raise InputError("give either --data FOLDER or --images PICTURES")
        if self.truth is not None and not self.report:
            raise InputError("--truth is for the report; give --report too")
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score is {self.min_score}; expected 0 to 1")
        if self.least_score is not None and not 0 <= self.least_score <= self.min_score:
            raise InputError(f"--least-score is {self.least_score}; expected 0 to --min-score ({self.min_score})")
        if self.level < 0:
            raise InputError(f"--level is {self.level}; expected 0 or more")
        check_channels(self.channels)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: its folder, the number of cells, and what went wrong with which picture."""

    folder: Path
    cells: int
    failures: dict[str, str]


@dataclass(frozen=True)
class Job:
    """One picture to predict: page ``page`` of the file ``path``. ``key`` names its output files."""

    key: str
    file_name: str
    path: Path
    page: int
    image_id: int
    size: tuple[int, int] | None = None


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
        if device.type == "cpu":
            keep_freed_memory()
        jobs = find_jobs(config)
        predictor = load(
            config.checkpoint,
            config.device,
            config.precision,
            config.tile,
            config.overlap,
            config.batch_size,
            config.augment,
            config.least_score,
        )
        folder = config.out if config.out is not None else config.checkpoint.parent
        todo = distributed.from_main(lambda: _prepare(config, folder, jobs))
        own = todo[distributed.rank() :: distributed.world_size()]
        failures: dict[str, str] = {}
        for part in distributed.from_all(_predict_all(config, predictor, own, folder)):
            failures |= part
        cells = distributed.from_main(lambda: _finish(config, predictor, jobs, folder, failures))
        return Outcome(folder, cells, failures)


def find_jobs(config: InferConfig) -> list[Job]:
    """The pictures of ``--data`` or ``--images`` in order; raises InputError where there are none."""
    if config.data is not None:
        tests = read_test_release(config.data)
        keys = _keys([test.path for test in tests], [1] * len(tests))
        return [
            Job(key, test.file_name, test.path, 0, test.image_id, (test.height, test.width))
            for (key,), test in zip(keys, tests, strict=True)
        ]
    listed = [path for entry in config.images for path in _pictures_in(entry)]
    paths = list({os.path.abspath(path): path for path in listed}.values())  # a folder may be given twice
    own_pages = [_pages(path, config, {os.path.realpath(other) for other in paths}) for path in paths]
    keys = _keys(paths, list(map(len, own_pages)))
    pages = [
        (key, path, page)
        for names, path, numbers in zip(keys, paths, own_pages, strict=True)
        for key, page in zip(names, numbers, strict=True)
    ]
    return [Job(key, path.name, path, page, image_id) for image_id, (key, path, page) in enumerate(pages, start=1)]


def _pages(path: Path, config: InferConfig, listed: set[str]) -> list[int]:
    """The numbers of a file's pictures, from its header; of those of an OME set, without what other ``listed`` files
    hold. One of a file that cannot be read, which will fail in its turn."""
    try:
        with readable(path):
            if not is_tiff(path):
                return [0]
        pictures = open_pictures(path, level=config.level, channels=config.channels)
    except InputError:
        return [0]
    return [
        number
        for number, picture in enumerate(pictures)
        if picture.path == path or os.path.realpath(picture.path) not in listed
    ]


def _pictures_in(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    if not entry.is_dir():
        raise InputError(f"--images {entry}: no such file or folder")
    found = sorted(path for path in entry.iterdir() if path.suffix.lower() in PICTURES) or sorted(
        entry.glob(f"*/{IMAGE}")
    )
    if not found:
        raise InputError(f"--images {entry}: no picture ({', '.join(PICTURES)}) in this folder")
    return found


def _keys(paths: Sequence[Path], pages: Sequence[int]) -> list[list[str]]:
    """Of each file the names that its pages' results get: its own without the ending, of ``<name>/image.tif`` the
    folder's; in a stack the page's number follows.

    Where that names two files, the ending stays; where it still does, a number follows.
    """
    stems = [path.parent.name if path.name == IMAGE else path.stem for path in paths]
    counts = Counter(stems)
    taken: set[str] = set()
    keys = []
    for stem, path, number in zip(stems, paths, pages, strict=True):
        name = stem if counts[stem] == 1 else path.name
        ends = [f"-{page + 1}" if number > 1 else "" for page in range(number)]
        names = (name if copy == 1 else f"{name}-{copy}" for copy in count(1))
        free = next(name for name in names if not any(name + end in taken for end in ends))
        keys.append([free + end for end in ends])
        taken.update(keys[-1])
    return keys


def _prepare(config: InferConfig, folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """Create the folder and keep the options that the cells depend on; returns the pictures that are not done yet.

    Raises InputError for results of other options; with ``--overwrite`` they are given up before anything is
    predicted, so that what a run that is stopped leaves behind is all of one kind.
    """
    digest = hashlib.sha256(config.checkpoint.read_bytes()).hexdigest()
    names = ("tile", "overlap", "augment", "level", "channels", "precision", "min_score", "least_score")
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
    source = _source(job)
    return source is not None and json.loads(record.read_text()).get("source") == source


def _source(job: Job) -> list[str | int] | None:
    """What tells the picture from another one, or another version, of the same name; None where it is gone."""
    try:
        status = job.path.stat()
    except OSError:
        return None
    return [os.path.abspath(job.path), job.page, status.st_size, status.st_mtime_ns]


def _predict_all(config: InferConfig, predictor: Predictor, jobs: Sequence[Job], folder: Path) -> dict[str, str]:
    """Predict the pictures and write their files, the last one's while the network works on the next; returns what
    went wrong, by key."""
    failures: dict[str, str] = {}
    main = distributed.is_main()
    open_page = _Opener(config, predictor)
    with ThreadPoolExecutor(1) as pool:
        writing_last: Future[None] | None = None
        for job in tqdm(jobs, desc="infer", unit="picture", disable=not main):
            source = _source(job)
            try:
                picture = open_page(job)
                with tqdm(desc=picture.name, unit="tile", leave=False, disable=not main, delay=2) as bar:

                    def show(done: int, total: int, bar: Any = bar) -> None:
                        bar.total = total
                        bar.update(done - bar.n)

                    detections = predictor.predict(picture, show)
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


class _Opener:
    """Opens the pictures of jobs; the pages of a stack in a row, from one reading of its headers."""

    def __init__(self, config: InferConfig, predictor: Predictor) -> None:
        self.config, self.percentiles = config, predictor.percentiles
        self.path: Path | None = None
        self.pages: list[Picture] = []

    def __call__(self, job: Job) -> Picture:
        """Raises InputError where the file cannot be read, or is not of the size that the id mapping says."""
        if job.path != self.path:
            self.path = None  # stays so where the file cannot be opened
            self.pages = open_pictures(job.path, self.percentiles, self.config.level, self.config.channels)
            self.path = job.path
        if job.page >= len(self.pages):
            raise InputError(f"{job.path}: {len(self.pages)} pages now; it had more when the run started")
        picture = self.pages[job.page]
        if job.size is not None and picture.size != job.size:
            (height, width), (h, w) = picture.size, job.size
            raise InputError(f"{job.path}: {height}x{width} pixels, but the id mapping says {h}x{w}")
        return picture


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
    shown = detections.filter(config.min_score)
    if "labels" in wanted:
        write_labels(paths["labels"], shown)
    if "class-labels" in wanted:
        write_class_labels(paths["class-labels"], shown, len(names))
    if "geojson" in wanted:
        write_geojson(paths["geojson"], shown, names)
    if "csv" in wanted:
        write_table(paths["csv"], shown, names, picture.raw)
    if "overlay" in wanted:
        overlay = draw_overlay(picture.reduced(OVERLAY), shown, names, config.min_score)
        with replacing(paths["overlay"]) as beside:
            overlay.save(beside, "PNG", optimize=True)
    height, width = picture.size
    results = detections.to_coco(job.image_id)
    record = {"name": picture.name, "source": source, "height": height, "width": width, "results": results}
    _write_text(folder / CELLS / f"{job.key}.json", json.dumps(record))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as beside:
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
        written += write_results(folder, results, images, len(predictor.class_names))
    if config.report:
        pictures = _report_pictures(config, predictor, done, records)
        write_report(folder / REPORT, pictures, predictor.class_names, min_score=config.min_score)
        written.append(folder / REPORT)
    print(f"{len(results)} cells in {len(done)} pictures: {', '.join(map(str, written)) or folder}")
    if failures:
        print(f"{len(failures)} pictures were passed over: {folder / FAILURES}", file=sys.stderr)
    return len(results)


def _report_pictures(
    config: InferConfig, predictor: Predictor, jobs: Sequence[Job], records: dict[str, Any]
) -> Iterator[ReportPicture]:
    truth = None if config.truth is None else Hw3Folder(config.truth, num_classes=len(predictor.class_names))
    open_page = _Opener(config, predictor)
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
