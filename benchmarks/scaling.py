"""Time of NMS and mask encoding by number of cells.

    python -m benchmarks.scaling -o benchmarks/results/scaling.png

Implementations are skipped where they become too slow (--patience seconds per call) or need too much memory (--memory
GB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import matplotlib
import numpy as np
import tyro

from benchmarks.measure import machine, seconds, table
from benchmarks.ops import PICTURE, nms_pair, rle_pair

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BOXES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
MASKS = (10, 30, 100, 300, 1_000, 2_000, 5_000)


@dataclass(frozen=True)
class Options:
    """Plot time against the number of boxes and of masks."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("scaling.png")
    """The plot."""
    device: Literal["cpu", "cuda"] = "cpu"
    patience: float = 20.0
    """Longest time of one call, in seconds; larger sizes are left out."""
    memory: float = 10.0
    """Maximum memory for the full-size masks that torchvision pastes, in GB; larger sizes are left out."""


def measure(pair: Callable, counts: tuple[int, ...], options: Options) -> list[list[float]]:
    """Best of three calls for each count, torchvision's and ours; NaN where it was left out."""
    results = []
    tired = [False, False]
    for count in counts:
        times = []
        for side, run in enumerate(pair(count, options.device)):
            pasted = side == 0 and pair is rle_pair and count * PICTURE**2 * 5 > options.memory * 1e9
            if tired[side] or pasted:
                times.append(float("nan"))
                continue
            first = seconds(run, options.device)
            # the next size is three times as large: leave it out if it would be too slow even in linear time
            tired[side] = first * 3 > options.patience
            times.append(first if first > 5 else min(first, *(seconds(run, options.device) for _ in range(2))))
        results.append(times)
    return results


def main(options: Options) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    rows = []
    work = (("NMS", "boxes", BOXES, nms_pair), (f"masks to RLE, {PICTURE}x{PICTURE}", "masks", MASKS, rle_pair))
    for axis, (title, unit, counts, pair) in zip(axes, work, strict=True):
        times = measure(pair, counts, options)
        for side, (name, color) in enumerate((("torchvision", "#999999"), ("maskrcnn", "#0072b2"))):
            axis.loglog(counts, [t[side] for t in times], "o-", color=color, label=name, markersize=4)
        axis.set(title=title, xlabel=unit, ylabel="seconds")
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left")
        rows += [
            [title, f"{n:,} {unit}", *("left out" if np.isnan(t) else f"{t * 1e3:.2f} ms" for t in pair_of)]
            for n, pair_of in zip(counts, times, strict=True)
        ]
    figure.savefig(options.output, dpi=110)
    print(f"{machine(options.device)}\n")
    print(table(["op", "size", "torchvision", "ours"], rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
