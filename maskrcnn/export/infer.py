"""Inference on many pictures, from options to result files; can be stopped, resumed and distributed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.data.picture import Picture
from maskrcnn.device import choose_device
from maskrcnn.errors import InputError, writing
from maskrcnn.export.config import InferConfig
from maskrcnn.export.failures import Failures
from maskrcnn.export.jobs import Job, Opener, find_jobs, source_of
from maskrcnn.export.names import printable
from maskrcnn.export.picture_files import write_picture
from maskrcnn.export.run_folder import CELLS, begin, default_folder
from maskrcnn.export.summary import finish, minimum_scores
from maskrcnn.export.truth import Truth
from maskrcnn.export.zarr_labels import create_zarr_labels
from maskrcnn.files import lock_folder
from maskrcnn.predict.load import load
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections

TIMEOUT = timedelta(days=7)
"""How long processes wait for the one with the largest slide."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run: its folder, the number of cells, and the errors by picture."""

    folder: Path
    cells: int
    failures: dict[str, str]


def infer(config: InferConfig) -> Outcome:
    """Predict every picture and write the results of ``--format`` and ``--report``.

    A picture is done when ``cells/<name>.json`` exists, which is written after its other files: a run that was stopped
    resumes with the next picture. The record identifies the picture's file, which is predicted again if it was replaced
    or changed. Pictures that cannot be read, or whose files cannot be written, are skipped and listed in
    ``failures.csv``. With torchrun, the pictures are distributed over the processes; process 0 combines the results.

    Raises:
        InputError: options, the id mapping, the checkpoint, the ground truth or the output folder are invalid, or the
            folder holds results of other options.
    """
    config.check()
    device = choose_device(config.device)
    with distributed.processes(device, TIMEOUT), ExitStack() as stack:
        predictor = _load(config)
        if config.channels is None:
            config = replace(config, channels=predictor.channels)
        jobs = find_jobs(config)
        truth = None if config.truth is None else Truth(config.truth, len(predictor.class_names), jobs)
        folder = config.out if config.out is not None else default_folder(config.checkpoint)

        def prepare() -> list[Job]:
            with writing(folder):
                (folder / CELLS).mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_folder(folder, "predict"))
            if "zarr" in config.format:
                create_zarr_labels([job.path for job in jobs])
            return begin(config, folder, jobs)

        todo = distributed.from_main(prepare)
        failures = Failures(folder, config.format)
        _predict_all(config, predictor, todo[distributed.rank() :: distributed.world_size()], folder, failures)
        for errors in distributed.from_all(failures.errors):
            failures.errors |= errors
        cells = distributed.from_main(lambda: finish(config, predictor, folder, jobs, truth, failures))
        return Outcome(folder, cells, failures.errors)


def _load(config: InferConfig) -> Predictor:
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
            f"--diameter is {config.diameter}, but {config.checkpoint} was not trained for cells of one size; "
            "expected none"
        )
    return predictor


def _predict_all(
    config: InferConfig, predictor: Predictor, jobs: Sequence[Job], folder: Path, failures: Failures
) -> None:
    """Predict the pictures and write their files; the files of one are written while the next is predicted."""
    open_page = Opener(config, predictor.percentiles)
    score_threshold = minimum_scores(config, predictor)
    with ThreadPoolExecutor(1) as pool:
        last: tuple[Job, Future[None]] | None = None
        for job in tqdm(jobs, desc="infer", unit="picture", disable=not distributed.is_main()):
            source = source_of(job)
            try:
                picture = open_page(job)
                detections = _predict(predictor, picture, config)
            except Exception as error:  # decoders raise all kinds of exceptions
                failures.pass_over(job, error)
                continue
            _wait(last, failures)
            write = partial(write_picture, formats=config.format, class_names=predictor.class_names)
            last = job, pool.submit(write, folder, job, source, picture, detections, score_threshold=score_threshold)
        _wait(last, failures)


def _predict(predictor: Predictor, picture: Picture, config: InferConfig) -> Detections:
    """Predict a picture, with a progress bar over its tiles if it takes long."""
    with tqdm(
        desc=printable(picture.name), unit="tile", leave=False, disable=not distributed.is_main(), delay=2
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return predictor.predict(picture, show, config.diameter)


def _wait(last: tuple[Job, Future[None]] | None, failures: Failures) -> None:
    """Wait until a picture's files are written."""
    if last is None:
        return
    job, written = last
    try:
        written.result()
    except Exception as error:
        failures.pass_over(job, error)
