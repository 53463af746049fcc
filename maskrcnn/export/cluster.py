"""Inference on the workers of a Dask cluster, who read the pictures and write their files as one process would.

A small picture is one task. A large one is several: its plan (diameter, scale, tiles), the detections of some tiles
each, and the merging. Dask repeats the tasks of a worker that dies.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maskrcnn.checkpoint import locate
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.failures import Failures, describe
from maskrcnn.export.jobs import Job, Opener, source_of
from maskrcnn.export.load import load_predictor, minimum_scores
from maskrcnn.export.picture_files import write_picture
from maskrcnn.predict.plan import Plan
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections

TILES = 16
"""Most tiles of a task; pictures with more are divided."""

TIMEOUT = "30s"
"""How long to wait for the scheduler."""

_BUSY = threading.Lock()  # a worker may have several threads, but the network uses all cores


@dataclass(frozen=True)
class Started:
    """A large picture: how to predict it, and :func:`source_of` it from before it was read."""

    plan: Plan
    source: list[str | int] | None


@dataclass(frozen=True)
class Failed:
    """Why a picture cannot be predicted, in one line."""

    message: str


def predict_on_cluster(config: InferConfig, jobs: Sequence[Job], folder: Path, failures: Failures) -> None:
    """Predict the pictures and write their files on the cluster of ``config.dask``.

    Raises:
        InputError: there is no such scheduler, or the library is missing.
    """
    try:
        import distributed as library
    except ImportError as error:
        raise InputError(f"--dask: Dask is not installed ({error}); pip install 'maskrcnn[dask]'") from error
    # workers have working directories of their own
    folder, paths = folder.absolute(), {job.key: str(job.path) for job in jobs}
    jobs = [replace(job, path=job.path.absolute()) for job in jobs]
    checkpoint = config.checkpoint.absolute() if config.checkpoint.is_file() else config.checkpoint
    config, address = replace(config, checkpoint=checkpoint), str(config.dask)
    with _connect(library, address) as client, tqdm(total=len(jobs), desc="infer", unit="picture") as bar:
        waiting = {client.submit(start, config, folder, job, pure=False): job for job in jobs}
        done = library.as_completed(list(waiting), loop=client.loop)
        for future in done:
            job = waiting.pop(future)
            try:
                result = future.result()
            except Exception as error:  # such as KilledWorker, where three workers died of one task
                result = Failed(describe(job, error))
            if isinstance(result, Started):
                batches = result.plan.batches
                step = max(1, TILES // result.plan.batch_size)
                shares = [batches[first : first + step] for first in range(0, len(batches), step)]
                # the future, not the result: if the worker that holds it dies, the picture is planned again
                found = [client.submit(detect, config, job, future, share, pure=False) for share in shares]
                last = client.submit(finish, config, folder, job, future, found, pure=False)
                waiting[last] = job
                done.add(last)
                continue
            if isinstance(result, Failed):
                message = result.message.replace(str(job.path), paths[job.key])
                failures.pass_over(replace(job, path=Path(paths[job.key])), InputError(message))
            bar.update()


def _connect(library: Any, address: str) -> Any:
    place = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        return library.Client(**place, timeout=TIMEOUT, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(f"--dask {address}: no scheduler answers there: {error}") from error


def start(config: InferConfig, folder: Path, job: Job) -> Started | Failed | None:
    """A task: predict a picture and write its files, or plan it if it is large."""
    source = source_of(job)
    with _BUSY:
        try:
            predictor, open_page = _worker(config, _version(config))
            picture = open_page(job)
            plan = predictor.plan(picture, config.diameter)
            if len(plan.tiles) > TILES:
                return Started(plan, source)
            _write(config, folder, job, source, predictor.carry_out(picture, plan))
        except Exception as error:  # decoders raise all kinds of exceptions
            return Failed(describe(job, error))
    return None


def detect(
    config: InferConfig, job: Job, started: Started, batches: Sequence[Sequence[int]]
) -> list[Detections] | Failed:
    """A task: the detections of some tiles."""
    with _BUSY:
        try:
            predictor, open_page = _worker(config, _version(config))
            return predictor.detect(open_page(job), started.plan, batches)
        except torch.cuda.OutOfMemoryError:
            side = max(max(tile.height, tile.width) for tile in started.plan.tiles)
            return Failed(f"{job.path}: out of memory with tiles of {side} pixels; choose a smaller --tile")
        except Exception as error:
            return Failed(describe(job, error))


def finish(
    config: InferConfig, folder: Path, job: Job, started: Started, parts: Sequence[list[Detections] | Failed]
) -> Failed | None:
    """A task: merge the detections of all tiles and write the picture's files."""
    found: list[Detections] = []
    for part in parts:
        if isinstance(part, Failed):
            return part
        found += part
    with _BUSY:
        try:
            predictor, open_page = _worker(config, _version(config))
            picture = open_page(job)
            picture.intensities = started.plan.intensities
            _write(config, folder, job, started.source, predictor.merge(picture, started.plan, found))
        except Exception as error:
            return Failed(describe(job, error))
    return None


def _write(config: InferConfig, folder: Path, job: Job, source: list[str | int] | None, detections: Detections) -> None:
    predictor, open_page = _worker(config, _version(config))
    names, scores = predictor.class_names, minimum_scores(config, predictor)
    write_picture(folder, job, source, open_page(job), detections, config.format, names, scores)


def _version(config: InferConfig) -> tuple[int, int]:
    """Tells a checkpoint from a later one by the same name: a worker outlives the run."""
    status = locate(config.checkpoint).stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _worker(config: InferConfig, version: tuple[int, int]) -> tuple[Predictor, Opener]:
    """What a worker keeps from task to task."""
    predictor = load_predictor(config)
    return predictor, Opener(config, predictor.percentiles)
