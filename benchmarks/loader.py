"""Training samples per second of the data loader, compared to those that a training step consumes.

    python -m benchmarks.loader --data DIR --seconds-per-step 0.25

Augmented crops of a synthetic data set of 512x512 pictures, and of --data if given, in the order of training. The first
epoch decodes the files (with workers: before they are started, as part of that epoch); later ones show the steady
state. The step is not run: it consumes batch size / --seconds-per-step samples per second, and the loader is the
bottleneck if it provides fewer.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.measure import machine, table
from maskrcnn.data.synthetic import write_dataset
from maskrcnn.engine.config import DataOptions, TrainConfig
from maskrcnn.engine.datasets import build_datasets
from maskrcnn.engine.loader import EpochSampler, build_loader


@dataclass(frozen=True)
class Options:
    """Samples per second of the data loader, by crop and number of worker processes."""

    data: Path | None = None
    """A folder in the HW3 layout or a COCO file, in addition to the synthetic data set."""
    seconds_per_step: float = 0.25
    """Time of a training step without the loader."""
    batch_size: int = 2
    crops: tuple[int, ...] = (256, 512)
    """Sides of the crops, in pixels."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Worker processes; 0: the training process prepares its batches itself."""
    epochs: int = 3
    """The first is timed by itself, the others together."""
    synthetic: int = 64
    """Pictures of the synthetic set."""


def samples_per_second(data: Path, crop: int, workers: int, options: Options) -> tuple[float, float]:
    """Samples per second of the first epoch, with decoding, and of the others."""
    config = TrainConfig(data_options=DataOptions(data=(data,), crop=crop))
    with contextlib.redirect_stdout(io.StringIO()):
        datasets = build_datasets(config, data)
    sampler = EpochSampler(datasets.repeat_factors, options.batch_size, seed=0)
    rates = []
    samples, start = 0, time.perf_counter()
    loader = build_loader(datasets.train, sampler, workers, torch.device("cpu"))
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        samples += sum(len(batch) for batch in loader)
        if epoch in (0, options.epochs - 1):
            rates.append(samples / (time.perf_counter() - start))
            samples, start = 0, time.perf_counter()
    return rates[0], rates[-1]


def main(options: Options) -> None:
    need = options.batch_size / options.seconds_per_step
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "synthetic", train=options.synthetic, test=0, size=512)
        for data in [Path(folder) / "synthetic", *([options.data] if options.data is not None else [])]:
            for crop in options.crops:
                for workers in options.workers:
                    first, later = samples_per_second(data, crop, workers, options)
                    cells = [data.name, str(crop), str(workers), f"{first:.0f}", f"{later:.0f}"]
                    rows.append([*cells, f"{need:.0f}", f"{later / need:.1f}"])
    print(f"{machine()}\n")
    header = ["data", "crop", "workers", "first epoch, samples/s", "later epochs, samples/s"]
    print(table([*header, f"a step of {options.seconds_per_step:g} s takes", "given / taken"], rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
