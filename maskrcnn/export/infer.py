"""An inference run from options to files: a folder of pictures that can be stopped, gone on with, and shared out."""

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
from maskrcnn.export.summary import finish, shown_from
from maskrcnn.export.truth import Truth
from maskrcnn.files import lock_folder
from maskrcnn.predict.predictor import Predictor, load
from maskrcnn.structures import Detections

PATIENCE = timedelta(days=7)
"""How long processes wait for the one whose slide is the largest."""


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
    was changed since. A picture that cannot be read, or whose files cannot be written, is passed over, and named in
    ``failures.csv``. Processes that torchrun started share the pictures out; process 0 puts the results together.

    Raises:
        InputError: options, the id mapping, the checkpoint, the true cells or the output folder cannot be used, or the
            folder holds results of other options.
    """
    config.check()
    device = choose_device(config.device)
    with distributed.processes(device, PATIENCE), ExitStack() as held:
        predictor = _load(config)
        if config.channels is None:
            config = replace(config, channels=predictor.channels)
        jobs = find_jobs(config)
        truth = None if config.truth is None else Truth(config.truth, len(predictor.class_names), jobs)
        folder = config.out if config.out is not None else default_folder(config.checkpoint)

        def prepare() -> list[Job]:
            with writing(folder):
                (folder / CELLS).mkdir(parents=True, exist_ok=True)
            held.enter_context(lock_folder(folder, "predict"))
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
            f"--diameter is {config.diameter}, but {config.checkpoint} was trained at the pictures' own scale; "
            "expected none"
        )
    return predictor


def _predict_all(
    config: InferConfig, predictor: Predictor, jobs: Sequence[Job], folder: Path, failures: Failures
) -> None:
    """Predict the pictures and write their files, the last one's while the network works on the next."""
    open_page = Opener(config, predictor.percentiles)
    score_threshold = shown_from(config, predictor)
    with ThreadPoolExecutor(1) as pool:
        last: tuple[Job, Future[None]] | None = None
        for job in tqdm(jobs, desc="infer", unit="picture", disable=not distributed.is_main()):
            source = source_of(job)
            try:
                picture = open_page(job)
                detections = _predict(predictor, picture, config)
            except Exception as error:  # decoders have all kinds
                failures.pass_over(job, error)
                continue
            _wait(last, failures)
            write = partial(write_picture, formats=config.format, class_names=predictor.class_names)
            last = job, pool.submit(write, folder, job, source, picture, detections, score_threshold=score_threshold)
        _wait(last, failures)


def _predict(predictor: Predictor, picture: Picture, config: InferConfig) -> Detections:
    """The cells of a picture, with a bar for its tiles where that takes long."""
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
