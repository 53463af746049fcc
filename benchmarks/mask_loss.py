"""Comparison of the mask losses: which is best, and is the difference larger than that between seeds?

    python -m benchmarks.mask_loss --data DIR --out runs/mask_loss [--seeds 0 1 2] [--jobs 2] [-- --crop 256 --epochs 3]

Trains every loss with every seed with the same options (those after ``--`` are passed to train.py) and prints tables of
the validation scores after the last epoch, with a plot. All seeds have the same split of the data. Completed runs are
not repeated, and stopped runs are resumed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.measure import machine, table
from benchmarks.runs import finished_run

BASE = "bce"
SCORES = {
    "mask/AP": "AP",
    "mask/AP50": "AP50",
    "mask/AP75": "AP75",
    "box/AP": "box AP",
    "dense/PQ": "PQ",
    "dense/SQ": "mean IoU of matched cells",
}
PLOTTED = ("mask/AP", "dense/SQ")
Results = dict[str, list[dict[str, float]]]
"""Of each loss the scores of its seeds, in the seeds' order."""


@dataclass(frozen=True)
class Options:
    """Train the mask losses side by side."""

    data: Path
    """Folder in the HW3 layout."""
    out: Path = Path("runs/mask_loss")
    """Folder for one run folder per loss and seed, and the report: report.md, mask_loss.png."""
    losses: tuple[str, ...] = ("bce", "dice", "bce+dice", "tversky")
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = 1
    """Number of simultaneous runs, which share the cores."""


def summary(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def difference(values: Sequence[float], base: Sequence[float]) -> str:
    """Mean difference of two losses and its 95 % interval, seed by seed (paired t)."""
    deltas = np.subtract(values, base)
    if len(deltas) < 2:
        return f"{deltas.mean():+.3f}"
    half = stats.t.ppf(0.975, len(deltas) - 1) * deltas.std(ddof=1) / len(deltas) ** 0.5
    return f"{deltas.mean():+.3f} ({deltas.mean() - half:+.3f} to {deltas.mean() + half:+.3f})"


def report(results: Results) -> str:
    """The tables, in Markdown."""

    def by_loss(columns: dict[str, str], cell: Callable[[str, str], str], losses: Iterable[str]) -> str:
        rows = [[loss, *(cell(loss, key) for key in columns)] for loss in losses]
        return table(["mask loss", *columns.values()], rows)

    def values(loss: str, key: str) -> list[float]:
        return [scores[key] for scores in results[loss]]

    def mean(loss: str, key: str) -> str:
        return summary(values(loss, key))

    def from_base(loss: str, key: str) -> str:
        return difference(values(loss, key), values(BASE, key))

    prefix = "mask/AP/"
    first = next(iter(results.values()))[0]
    classes = {key: key.removeprefix(prefix) for key in first if key.startswith(prefix)}
    text = [by_loss(SCORES, mean, results), "Mask AP by class:", by_loss(classes, mean, results)]
    others = [loss for loss in results if loss != BASE]
    if BASE in results and others:
        text += [f"Differences from {BASE}, with 95 % intervals (paired by seed):", by_loss(SCORES, from_base, others)]
    return "\n\n".join(text)


def plot(results: Results, path: Path) -> None:
    """Plot one dot per seed and a bar at the mean of each loss."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(PLOTTED)), PLOTTED, strict=True):
        for place, scores in enumerate(results.values()):
            values = [s[key] for s in scores]
            axes.plot([place] * len(values), values, "o", color="tab:blue", alpha=0.7)
            axes.hlines(np.mean(values), place - 0.25, place + 0.25, color="black")
        axes.set_xticks(range(len(results)), list(results))
        axes.set_xlim(-0.5, len(results) - 0.5)
        axes.set_title(f"{'mask ' if key == 'mask/AP' else ''}{SCORES[key]}")
        axes.grid(axis="y", alpha=0.3)
    figure.supxlabel("mask loss; a dot a seed, the bar their mean", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, recipe = tyro.cli(Options, args=arguments[:split]), arguments[split + 1 :]
    options.out.mkdir(parents=True, exist_ok=True)
    runs = {(loss, seed): options.out / f"{loss}-{seed}" for seed in options.seeds for loss in options.losses}
    threads = max(1, len(os.sched_getaffinity(0)) // options.jobs)

    def train(loss: str, seed: int) -> dict[str, float]:
        own = ["--data", str(options.data), "--mask-loss", loss, "--seed", str(seed)]
        return finished_run(runs[loss, seed], [*own, *recipe], threads)

    with ThreadPoolExecutor(options.jobs) as pool:
        started = {key: pool.submit(train, *key) for key in runs}
        done = {key: run.result() for key, run in started.items()}
    results = {loss: [done[loss, seed] for seed in options.seeds] for loss in options.losses}
    title = f"{machine()}; {len(options.seeds)} seeds; train.py {' '.join(recipe)}"
    text = f"{title}\n\n{report(results)}\n"
    (options.out / "report.md").write_text(text)
    plot(results, options.out / "mask_loss.png")
    print(text)


if __name__ == "__main__":
    main()
