"""The plots of a run: what they draw, for one class and for many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from maskrcnn.evaluation import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = plots.save_figure

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        figures.append(figure)

    monkeypatch.setattr(plots, "save_figure", keep)
    return figures


def _inside(axis: Axes, figure: Figure) -> bool:
    """Whether everything that belongs to the axis lies on the page."""
    page, box = figure.bbox, axis.get_tightbbox()
    return box is not None and page.x0 <= box.x0 and page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 <= page.y1


@pytest.mark.parametrize("classes", [1, 4, 8])
def test_precision_recall(classes: int, tmp_path: Path, drawn: list[Figure]) -> None:
    precision = np.random.default_rng(0).random((10, 101, classes))
    if classes > 1:
        precision[:, :, 1] = -1
    names = [f"class{k}" for k in range(1, classes + 1)]
    plots.plot_precision_recall(precision, names, 200, tmp_path / "pr.png")
    half, three_quarters = drawn[0].axes
    for axis, index in ((half, 0), (three_quarters, 5)):
        np.testing.assert_array_equal(axis.lines[0].get_ydata(), precision[index, :, 0])
        texts = [text.get_text() for text in axis.get_legend().get_texts()]
        assert texts[0] == f"class1: {precision[index, :, 0].mean():.3f}"
        assert len(texts) == classes
        assert classes == 1 or (texts[1] == "class2: no cells" and len(axis.lines[1].get_ydata()) == 0)
        assert _inside(axis, drawn[0])
        assert axis.get_legend().get_window_extent().y1 < axis.get_window_extent().y0  # below the curves
    assert np.asarray(Image.open(tmp_path / "pr.png")).std() > 5
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("classes", [1, 3, 6])
def test_bars_of_classes(classes: int, tmp_path: Path, drawn: list[Figure]) -> None:
    keys = ("mask/AP", "mask/AP50", "dense/AP50", "dense/PQ")
    rng = np.random.default_rng(0)
    metrics = {key + f"/class{k}": float(rng.random()) for key in keys for k in range(1, classes + 1)}
    metrics |= dict.fromkeys(keys, 0.25)
    metrics |= {f"{key}/class{classes}": -1.0 for key in keys} if classes > 1 else {}
    plots.plot_classes(metrics, [f"class{k}" for k in range(1, classes + 1)], [7] * classes, tmp_path / "classes.png")
    (axis,) = drawn[0].axes
    groups = [f"/class{k}" for k in range(1, classes + 1)] + ([""] if classes > 1 else [])
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert heights == [[max(0, metrics[key + group]) for group in groups] for key in keys]
    texts = [text.get_text() for text in axis.texts]
    assert texts.count("none") == (4 if classes > 1 else 0)
    assert f"{metrics['mask/AP/class1']:.2f}" in texts
    assert _inside(axis, drawn[0])
