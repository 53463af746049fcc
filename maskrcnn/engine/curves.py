"""Plot of a run's losses and validation scores: ``loss.png``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskrcnn.engine.log import TOTAL
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS
from maskrcnn.evaluation.plots import COLORS, new_figure, save_figure

CURVES = "loss.png"

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_metrics(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot the losses (smoothed over about 2 % of the run) and, below, the validation scores against steps."""
    steps = [row for row in rows if TOTAL in row]
    validations = [row for row in rows if "mask/AP" in row]
    figure = new_figure((8, 6.5 if validations else 4))
    axes = figure.subplots(2 if validations else 1, 1, squeeze=False, sharex=True)[:, 0]
    x = np.array([row["step"] for row in steps])
    window = max(1, len(steps) // 50)
    for name in [key for key in next(iter(steps), {}) if key.startswith("loss")]:
        values = np.array([row[name] for row in steps])
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        is_total = name == TOTAL
        axes[0].plot(
            x[window - 1 :],
            smooth,
            label="total" if is_total else name.removeprefix("loss_"),
            linewidth=2 if is_total else 1,
            color="black" if is_total else None,
        )
    axes[0].set(ylabel="loss", title=title, ylim=(0, None))
    if steps:
        axes[0].legend(ncols=3, fontsize="small")
    if validations:
        _plot_validations(axes[1], validations)
    axes[-1].set_xlabel("step")
    for axis in axes:
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def _plot_validations(axis: Axes, validations: list[dict[str, Any]]) -> None:
    x = [row["step"] for row in validations]
    curves = (
        (f"mask/AP50@{MAX_DETECTIONS}", "AP50", "-"),
        (f"mask/AP@{MAX_DETECTIONS}", "AP (0.5:0.95)", "-"),
        (f"mask/AP75@{MAX_DETECTIONS}", "AP75", "-"),
        ("dense/AP50", "TP/(TP+FP+FN) at IoU 0.5", "--"),
        ("dense/PQ", "panoptic quality", "--"),
    )
    for (key, label, line), color in zip(curves, COLORS, strict=False):
        values = [row.get(key, np.nan) for row in validations]
        axis.plot(x, values, line, marker="o", markersize=4, label=label, color=color)
    axis.set(ylabel="validation, masks", ylim=(0, 1))
    axis.legend(fontsize="small", ncols=2)
