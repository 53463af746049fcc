"""Accuracy of the estimated cell diameter, and the AP with it compared to that with the true median.

    python -m benchmarks.diameter --checkpoint runs/NAME/best.pt [--data DIR] [--part train] [--source dsb2018/class4]

AP is computed for validation pictures only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

import maskrcnn
from benchmarks.measure import datasets_of_run, machine, of_source, table
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
    part: Literal["val", "train"] = "val"
    """Pictures to estimate the diameter of."""
    source: str | None = None
    """Source of the pictures: the data folder's name, and the class where a picture has cells of one class only."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    pictures = getattr(datasets_of_run(options.checkpoint, options.data), options.part)
    if options.source is not None:
        pictures = of_source(pictures, options.source)
    predictor = maskrcnn.load(options.checkpoint)
    true = [pictures.labels(index).median_diameter() for index in range(len(pictures))]
    estimates, seconds = [], []
    for index in tqdm(range(len(pictures)), desc="estimate"):
        start = time.perf_counter()
        estimates.append(predictor.find_diameter(pictures.picture(index)))
        seconds.append(time.perf_counter() - start)
    print(f"{machine()}; python -m benchmarks.diameter {' '.join(sys.argv[1:])}\n")
    header = ["pictures", "n", "mean error", "median error", "90 %", "off by an octave", "none found"]
    print(table(header, errors(pictures, true, estimates)))
    print(f"\n{np.mean(seconds):.2f} s per picture (median {np.median(seconds):.2f})\n")
    if options.part == "val":
        ways = {"true median": true, "estimated": estimates, "own scale": [None] * len(true)}
        rows = [scores_of(name, diameters, predictor, pictures) for name, diameters in ways.items()]
        print(table(["diameter", *score_columns(pictures)], rows))


def errors(pictures: CellDataset, true: list[float | None], estimates: list[float | None]) -> list[list[str]]:
    """One row per source: absolute errors in octaves, over the pictures that have cells."""
    rows = []
    for source in ["all", *sorted(set(pictures.sources))]:
        chosen = [i for i, own in enumerate(pictures.sources) if source in ("all", own) and true[i] is not None]
        octaves = np.array([abs(np.log2(estimates[i] / true[i])) for i in chosen if estimates[i] is not None])
        statistics = (np.mean(octaves), np.median(octaves), np.quantile(octaves, 0.9)) if len(octaves) else ()
        numbers = [f"{number:.3f}" for number in statistics] or [""] * 3
        off = int((octaves > 1).sum())
        rows.append([source, str(len(chosen)), *numbers, str(off), str(len(chosen) - len(octaves))])
    return rows


def score_columns(pictures: CellDataset) -> list[str]:
    keys = ["mask/AP@1000", "mask/AP50@1000", "dense/AP50", "dense/AP90"]
    if len(set(pictures.sources)) > 1:
        keys += [f"mask/AP50@1000/{source}" for source in sorted(set(pictures.sources))]
    return keys


def scores_of(name: str, diameters: Sequence[float | None], predictor: Predictor, pictures: CellDataset) -> list[str]:
    given: list[Diameter] = ["none" if diameter is None else diameter for diameter in diameters]
    found = predict_dataset(predictor, pictures, given)
    scores = score(to_coco(pictures), to_results(pictures, found), predictor.score_threshold, pictures.sources)
    return [name, *(f"{scores[key]:.3f}" for key in score_columns(pictures))]


if __name__ == "__main__":
    main()
