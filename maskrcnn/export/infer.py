"""Inference on many pictures, from options to result files; can be stopped, resumed and distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.data.picture import Picture
from maskrcnn.device import choose_device
from maskrcnn.errors import InputError, writing
from maskrcnn.export.cluster import predict_on_cluster
from maskrcnn.export.config import InferConfig
from maskrcnn.export.failures import Failures
from maskrcnn.export.jobs import Job, Opener, find_jobs, source_of
from maskrcnn.export.load import load_predictor, minimum_scores
from maskrcnn.export.picture_files import write_picture
from maskrcnn.export.run_folder import CELLS, begin, default_folder
from maskrcnn.export.summary import finish
from maskrcnn.export.truth import Truth
from maskrcnn.export.zarr_labels import create_zarr_labels
from maskrcnn.files import lock_folder, printable
from maskrcnn.predict.predictor import Predictor
from maskrcnn.predict.together import is_large, predict_together
from maskrcnn.structures import Detections

P = TypeVar("P", Detections, Detections | None)

TIMEOUT = timedelta(days=7)
"""How long processes wait for the one with the largest slide."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run: its folder, the number of candidates of all scores, and the errors by picture."""

    folder: Path
    cells: int
    failures: dict[str, str]


def infer(config: InferConfig) -> Outcome:
    """Predict every picture and write the results of ``--format`` and ``--report``.

    A picture is done when its files in all formats exist and ``cells/<name>.json``, which is written last: a run that
    was stopped resumes with the next picture. The record identifies the picture's file, which is predicted again if it
    was replaced or changed. Pictures that cannot be read, or whose files cannot be written, are skipped and listed in
    ``failures.csv``. With torchrun, the pictures are distributed over the processes, and the tiles of large ones;
    process 0 combines the results.

    Raises:
        InputError: options, the id mapping, the checkpoint, the ground truth or the output folder are invalid, or the
            folder holds results of other options.
    """
    config.check()
    device = choose_device(config.device)
    with distributed.processes(device, TIMEOUT), ExitStack() as stack:
        if config.dask is not None and distributed.world_size() > 1:
            raise InputError("--dask shares the pictures out itself; start it without torchrun")
        predictor = load_predictor(config)
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
            scores = minimum_scores(config, predictor)
            return begin(config, folder, jobs, {"class_names": predictor.class_names, "least_scores": scores})

        todo = distributed.from_main(prepare)
        failures = Failures(folder, config.format)
        if config.dask is not None:
            predict_on_cluster(config, todo, folder, failures)
        else:
            own = todo[distributed.rank() :: distributed.world_size()]
            left = _predict_all(config, predictor, own, folder, failures)
            large = {job for jobs in distributed.from_all(left) for job in jobs}
            _predict_large(config, predictor, [job for job in todo if job in large], folder, failures)
        for errors in distributed.from_all(failures.errors):
            failures.errors |= errors
        cells = distributed.from_main(lambda: finish(config, predictor, folder, jobs, truth, failures))
        return Outcome(folder, cells, failures.errors)


def _predict_all(
    config: InferConfig, predictor: Predictor, jobs: Sequence[Job], folder: Path, failures: Failures
) -> list[Job]:
    """Predict the pictures and write their files; the files of one are written while the next is predicted.

    Returns:
        Those that are left for all processes together.
    """
    open_page = Opener(config, predictor.percentiles)
    score_threshold = minimum_scores(config, predictor)
    large = []
    with ThreadPoolExecutor(1) as pool:
        last: tuple[Job, Future[None]] | None = None
        for job in tqdm(jobs, desc="infer", unit="picture", disable=not distributed.is_main()):
            source = source_of(job)
            try:
                picture = open_page(job)
                if is_large(predictor, picture):
                    large.append(job)
                    continue
                detections = _predict(predictor.predict, picture, config)
            except Exception as error:  # decoders raise all kinds of exceptions
                failures.pass_over(job, error)
                continue
            _wait(last, failures)
            write = partial(write_picture, formats=config.format, class_names=predictor.class_names)
            last = job, pool.submit(write, folder, job, source, picture, detections, score_threshold=score_threshold)
        _wait(last, failures)
    return large


def _predict_large(
    config: InferConfig, predictor: Predictor, jobs: Sequence[Job], folder: Path, failures: Failures
) -> None:
    """Predict pictures one after another with all processes; process 0 writes their files."""
    open_page = Opener(config, predictor.percentiles)
    score_threshold = minimum_scores(config, predictor)
    for job in jobs:
        source = source_of(job)
        try:
            picture = distributed.in_all(lambda: open_page(job))  # noqa: B023
            detections = _predict(partial(predict_together, predictor), picture, config)
            if detections is not None:
                formats, names = config.format, predictor.class_names
                write_picture(folder, job, source, picture, detections, formats, names, score_threshold)
        except Exception as error:
            if distributed.is_main():
                failures.pass_over(job, error)


def _predict(predict: Callable[..., P], picture: Picture, config: InferConfig) -> P:
    """Predict a picture, with a progress bar over its tiles if it takes long."""
    with tqdm(
        desc=printable(picture.name), unit="tile", leave=False, disable=not distributed.is_main(), delay=2
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return predict(picture, show, config.diameter)


def _wait(last: tuple[Job, Future[None]] | None, failures: Failures) -> None:
    """Wait until a picture's files are written."""
    if last is None:
        return
    job, written = last
    try:
        written.result()
    except Exception as error:
        failures.pass_over(job, error)
