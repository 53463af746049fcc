"""Combined results of an inference run: COCO files, report and summary."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.hw3 import IMAGE
from maskrcnn.data.id_mapping import TestImage
from maskrcnn.errors import InputError
from maskrcnn.export.coco import write_results
from maskrcnn.export.config import InferConfig
from maskrcnn.export.failures import Failures
from maskrcnn.export.jobs import Job, Opener
from maskrcnn.export.load import minimum_scores
from maskrcnn.export.run_folder import CELLS, REPORT, read_record, record_of
from maskrcnn.export.truth import Truth
from maskrcnn.files import printable
from maskrcnn.predict.predictor import Predictor
from maskrcnn.report.write import ReportPicture, write_report

THUMBNAIL = 1024
"""Longest side of the report's pictures in pixels."""

Records = list[tuple[Job, dict[str, Any]]]


def finish(
    config: InferConfig,
    predictor: Predictor,
    folder: Path,
    jobs: Sequence[Job],
    truth: Truth | None,
    failures: Failures,
) -> int:
    """Write the files for all pictures together and print a summary; returns the number of candidates of all scores.

    Pictures that are not done, that the report cannot show, or whose ground truth does not fit are added to
    ``failures``.

    Raises:
        InputError: a file cannot be written; the other files are written first.
    """
    score_threshold = minimum_scores(config, predictor)
    shown = total = 0
    records: Records = []
    for job, record in _read_records(folder, jobs, failures):
        total += len(record["results"])
        shown += sum(result["score"] >= score_threshold[result["category_id"] - 1] for result in record["results"])
        is_used = config.report or "coco" in config.format
        records.append((job, record if is_used else {**record, "results": []}))  # a plate has millions
    written: list[Path] = []
    errors: list[str] = []
    if "coco" in config.format:
        images = [
            TestImage(job.path, job.file_name, job.image_id, record["height"], record["width"])
            for job, record in records
        ]
        with _collect_errors(errors):
            if too_large := [job.file_name for job, record in records if record["height"] * record["width"] >= 2**32]:
                name = printable(too_large[0])
                print(f"warning: {name}: has more than 2^32 pixels, which pycocotools cannot count", file=sys.stderr)
            results = [result for _, record in records for result in record["results"]]
            written += write_results(folder, results, images, predictor.category_ids)
    if config.report:
        pictures = _report_pictures(Opener(config, predictor.percentiles), records, truth, failures)
        with _collect_errors(errors):
            write_report(folder / REPORT, pictures, predictor.class_names, score_threshold=score_threshold)
            written.append(folder / REPORT)
    print(
        f"{shown} cells in {len(records)} pictures, {total - shown} more with lower scores: "
        f"{printable(', '.join(map(str, written)) or str(folder))}"
    )
    _print_diameters([record["diameter"] for _, record in records])
    with _collect_errors(errors):
        failures.write()
    if errors:
        raise InputError("; ".join(errors))
    return total


@contextmanager
def _collect_errors(errors: list[str]) -> Iterator[None]:
    """Add the message of an InputError to ``errors``, and continue after the block."""
    try:
        yield
    except InputError as error:
        errors.append(str(error))


def _read_records(folder: Path, jobs: Sequence[Job], failures: Failures) -> Iterator[tuple[Job, dict[str, Any]]]:
    for job in jobs:
        if job.key in failures.errors:
            continue
        record = read_record(folder, job.key)
        if record is None:
            failures.pass_over(job, InputError(f"{record_of(folder, job.key)}: missing or damaged; run again"))
            continue
        for result in record["results"]:
            result["image_id"] = job.image_id  # an earlier run may have had other pictures before this one
        yield job, record


def _report_pictures(
    open_page: Opener, records: Records, truth: Truth | None, failures: Failures
) -> Iterator[ReportPicture]:
    for job, record in records:
        try:
            picture = open_page(job)
            thumbnail = picture.reduced(THUMBNAIL)
        except Exception as error:
            failures.report_lacks(job, "the picture", error)
            continue
        cells = None
        try:
            cells = None if truth is None else truth.read(job, picture.size)
        except Exception as error:
            failures.report_lacks(job, "its true cells", error)
        name = f"{job.key}/{IMAGE}" if job.path.name == IMAGE else picture.name
        yield ReportPicture(name, picture.size, record["results"], thumbnail, cells)


def _print_diameters(diameters: Sequence[float | None]) -> None:
    """Print the assumed cell diameters in one line."""
    known = [diameter for diameter in diameters if diameter is not None]
    if not known:
        return
    low, median, high = np.quantile(known, (0, 0.5, 1))
    unknown = len(diameters) - len(known)
    print(
        f"cells taken to be {median:.0f} pixels across ({low:.0f} to {high:.0f} in {len(known)} pictures; in {CELLS}/)"
        + (f"; {unknown} pictures at their own scale" if unknown else "")
    )
