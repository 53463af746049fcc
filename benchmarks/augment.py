"""Gain and cost of test-time augmentation on the validation pictures of a run.

python -m benchmarks.augment --checkpoint runs/NAME/best.pt [--data DIR] [--augment none flips rotations scales]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

import maskrcnn
from benchmarks.measure import machine, table, validation_pictures
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.predict.augment import Augment


@dataclass(frozen=True)
class Options:
    """Score the views side by side."""

    checkpoint: Path
    data: tuple[Path, ...] = ()
    """The run's data folders, if they have moved."""
    augment: tuple[Augment, ...] = ("none", "flips", "rotations", "scales")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    validation = validation_pictures(options.checkpoint, options.data)
    keys = ("mask/AP@1000", "mask/AP50@1000", "mask/AP", "mask/AP50", "dense/AP50", "dense/AP75", "dense/AP90")
    rows = []
    for augment in options.augment:
        predictor = maskrcnn.load(options.checkpoint, augment=augment)
        start = time.perf_counter()
        scores = evaluate(predictor, validation)
        seconds = (time.perf_counter() - start) / len(validation)
        rows.append([augment, *(f"{scores[key]:.3f}" for key in keys), f"{seconds:.2f}"])
    header = ["views", *keys, "seconds per picture, scoring included"]
    print(f"{machine()}; python -m benchmarks.augment {' '.join(sys.argv[1:])}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
