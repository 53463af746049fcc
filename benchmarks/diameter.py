"""Accuracy of the estimated cell diameter, and the AP with it compared to that with the true median.

python -m benchmarks.diameter --checkpoint runs/NAME/best.pt [--data DIR]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

import maskrcnn
from benchmarks.measure import machine, table, validation_pictures
from maskrcnn.data.coco import to_coco
from maskrcnn.data.dataset import CellDataset
from maskrcnn.evaluation.evaluate import predict_dataset, score, to_results
from maskrcnn.predict.predictor import Diameter, Predictor


@dataclass(frozen=True)
class Options:
    """Estimated against true diameters, picture by picture and in AP."""

    checkpoint: Path
    data: tuple[Path, ...] = ()
    """The run's data folders, if they have moved."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    validation = validation_pictures(options.checkpoint, options.data)
    predictor = maskrcnn.load(options.checkpoint)
    true = [validation.labels(index).median_diameter() for index in range(len(validation))]
    estimates, seconds = [], []
    for index in tqdm(range(len(validation)), desc="estimate"):
        start = time.perf_counter()
        estimates.append(predictor.find_diameter(validation.picture(index)))
        seconds.append(time.perf_counter() - start)
    print(f"{machine()}; python -m benchmarks.diameter {' '.join(sys.argv[1:])}\n")
    header = ["pictures", "n", "median error", "90 %", "off by an octave", "none found"]
    print(table(header, errors(validation, true, estimates)))
    print(f"\n{np.mean(seconds):.2f} s per picture (median {np.median(seconds):.2f})\n")
    ways = {"true median": true, "estimated": estimates, "own scale": [None] * len(true)}
    rows = [scores_of(name, diameters, predictor, validation) for name, diameters in ways.items()]
    print(table(["diameter", *score_columns(validation)], rows))


def errors(validation: CellDataset, true: list[float | None], estimates: list[float | None]) -> list[list[str]]:
    """One row per source: absolute errors in octaves, over the pictures that have cells."""
    rows = []
    for source in ["all", *sorted(set(validation.sources))]:
        chosen = [i for i, own in enumerate(validation.sources) if source in ("all", own) and true[i] is not None]
        octaves = np.array([abs(np.log2(estimates[i] / true[i])) for i in chosen if estimates[i] is not None])
        numbers = [f"{np.median(octaves):.3f}", f"{np.quantile(octaves, 0.9):.3f}"] if len(octaves) else ["", ""]
        off = int((octaves > 1).sum())
        rows.append([source, str(len(chosen)), *numbers, str(off), str(len(chosen) - len(octaves))])
    return rows


def score_columns(validation: CellDataset) -> list[str]:
    keys = ["mask/AP@1000", "mask/AP50@1000", "dense/AP50", "dense/AP90"]
    if len(set(validation.sources)) > 1:
        keys += [f"mask/AP50@1000/{source}" for source in sorted(set(validation.sources))]
    return keys


def scores_of(name: str, diameters: Sequence[float | None], predictor: Predictor, validation: CellDataset) -> list[str]:
    given: list[Diameter] = ["none" if diameter is None else diameter for diameter in diameters]
    found = predict_dataset(predictor, validation, given)
    scores = score(to_coco(validation), to_results(validation, found), predictor.score_threshold, validation.sources)
    return [name, *(f"{scores[key]:.3f}" for key in score_columns(validation))]


if __name__ == "__main__":
    main()
