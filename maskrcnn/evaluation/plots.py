"""Plots of scores: ``precision_recall.png`` and ``classes.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskrcnn.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette for colour-blind readers, without yellow, which is too pale for lines
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":")  # a new style when all colours are used


def plot_precision_recall(precision: np.ndarray, class_names: Sequence[str], limit: int, path: Path) -> None:
    """Plot precision against recall at mask IoU 0.5 and 0.75, one curve per class.

    Args:
        precision: [10, 101, K] of COCOeval: IoU 0.5:0.05:0.95, recall 0:0.01:1, classes; -1 for a class without cells.
        class_names: K names.
        limit: maximum number of detections per picture, for the title.
        path: a PNG file.
    """
    figure = new_figure((10, 5.1 + 0.25 * -(-len(class_names) // 2)))
    recall = np.linspace(0, 1, precision.shape[1])
    for axis, (iou, index) in zip(figure.subplots(1, 2, sharey=True), ((0.5, 0), (0.75, 5)), strict=True):
        for k, name in enumerate(class_names):
            curve = precision[index, :, k]
            known = bool((curve > -1).all())
            axis.plot(
                recall if known else [],
                curve if known else [],
                color=COLORS[k % len(COLORS)],
                linestyle=LINES[k // len(COLORS) % len(LINES)],
                linewidth=2,
                label=f"{name}: {curve.mean():.3f}" if known else f"{name}: no cells",
                clip_on=False,
                zorder=3,
            )
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", title=f"mask IoU {iou:g}")
        axis.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=2,
            frameon=False,
            title="class: AP (area under the curve)",
        )
        axis.grid(alpha=0.3)
        axis.tick_params(labelleft=True)
        axis.set_ylabel("precision")
    figure.suptitle(f"Validation: precision and recall, at most {limit} detections per picture")
    save_figure(figure, path)


def plot_classes(metrics: dict[str, float], class_names: Sequence[str], cells: Sequence[int], path: Path) -> None:
    """Plot bars of AP, AP50, dense AP50 and PQ for each class and their mean.

    Args:
        metrics: from :func:`maskrcnn.evaluation.evaluate.evaluate`.
        class_names: names of classes 1..K.
        cells: number of true cells per class.
        path: a PNG file.
    """
    bars = (
        ("mask/AP", "AP (COCO, IoU 0.5:0.95)"),
        ("mask/AP50", "AP50 (COCO)"),
        ("dense/AP50", "TP/(TP+FP+FN) at IoU 0.5"),
        ("dense/PQ", "panoptic quality"),
    )
    groups = [
        (f"{name}\n{n:,} cells", f"/class{k}") for k, (name, n) in enumerate(zip(class_names, cells, strict=True), 1)
    ]
    if len(class_names) > 1:
        groups.append((f"mean of classes\n{sum(cells):,} cells", ""))
    figure = new_figure((max(6.5, 1.2 + 1.75 * len(groups)), 4.6))
    axis = figure.subplots()
    width = 0.8 / len(bars)
    for position, (key, label) in enumerate(bars):
        values = [metrics[key + suffix] for _, suffix in groups]
        x = np.arange(len(groups)) + (position - (len(bars) - 1) / 2) * width
        drawn = axis.bar(x, np.maximum(values, 0), width * 0.92, label=label, color=COLORS[position], zorder=3)
        texts = [f"{value:.2f}" if value >= 0 else "none" for value in values]
        axis.bar_label(drawn, texts, padding=2, fontsize="small")
    if len(class_names) > 1:
        axis.axvline(len(groups) - 1.5, color="0.7", linewidth=1)
    axis.set_xticks(range(len(groups)), [name for name, _ in groups])
    axis.set(ylim=(0, 1.06), xlim=(-0.5, len(groups) - 0.5), ylabel="score (0 to 1)")
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Validation: scores of masks by class")
    figure.legend(loc="outside lower center", ncols=2 if len(groups) < 4 else 4, frameon=False, fontsize="small")
    save_figure(figure, path)


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of ``size`` (width, height) in inches."""
    from matplotlib.figure import Figure  # a sixth of the time in which commands start that plot nothing

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG through :func:`maskrcnn.files.atomic_write`."""
    with atomic_write(path) as beside:
        figure.savefig(beside, dpi=100, format="png")
