"""What a run leaves to look at: ``metrics.jsonl`` (a line a step, a line a validation) and ``loss.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from maskrcnn.errors import writing

TOTAL = "loss"


class MetricsLog:
    """Appends to ``metrics.jsonl``; every line is a JSON object with the ``step`` it belongs to."""

    def __init__(self, path: Path, resume: tuple[int, int] | None = None) -> None:
        """``resume``: steps and epochs that are done; lines of later steps, and validations of later epochs (which may
        follow the same step), are taken out first, for a resumed run writes them again."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if resume is not None and path.is_file():
            step, epoch = resume
            done = [row for row in read_metrics(path) if row["step"] <= step]
            self.rows = [row for row in done if TOTAL in row or row["epoch"] <= epoch]
        beside = path.with_name(path.name + ".part")
        with writing(path):
            beside.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            beside.replace(path)

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_metrics(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Losses against steps (smoothed over about 2 % of the run) and, below, the validation AP."""
    steps = [row for row in rows if TOTAL in row]
    validations = [row for row in rows if "mask/AP" in row]
    figure = Figure(figsize=(8, 6.5 if validations else 4), layout="constrained")
    axes = figure.subplots(2 if validations else 1, 1, squeeze=False, sharex=True)[:, 0]
    x = np.array([row["step"] for row in steps])
    window = max(1, len(steps) // 50)
    for name in [key for key in steps[0] if key.startswith("loss")]:
        values = np.array([row[name] for row in steps])
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        heavy = name == TOTAL
        axes[0].plot(
            x[window - 1 :],
            smooth,
            label="total" if heavy else name.removeprefix("loss_"),
            linewidth=2 if heavy else 1,
            color="black" if heavy else None,
        )
    axes[0].set(ylabel="loss", title=title, ylim=(0, None))
    axes[0].legend(ncols=3, fontsize="small")
    if validations:
        x = np.array([row["step"] for row in validations])
        for key, label in (("mask/AP50", "AP50"), ("mask/AP", "AP (0.5:0.95)"), ("mask/AP75", "AP75")):
            axes[1].plot(x, [row[key] for row in validations], marker="o", markersize=4, label=label)
        axes[1].set(ylabel="validation mask AP", ylim=(0, 1))
        axes[1].legend(fontsize="small")
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.grid(alpha=0.3)
    beside = path.with_name(path.stem + ".part.png")
    with writing(path):
        figure.savefig(beside, dpi=100)
        beside.replace(path)
