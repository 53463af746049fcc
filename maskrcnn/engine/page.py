"""A run's page, ``training.html``: its curves, and the validation pictures with outlines and truth, worst first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from maskrcnn.data.dataset import CellDataset
from maskrcnn.engine.curves import CURVES
from maskrcnn.engine.run import Run
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS
from maskrcnn.predict.predictor import Predictor
from maskrcnn.report.write import LONGEST_SIDE, ReportPicture, write_report

PAGE = "training.html"

PICTURES = 60
"""Most pictures in the page, about 9 MB."""


def write_page(
    run: Run,
    predictor: Predictor,
    dataset: CellDataset,
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    metrics: dict[str, float],
) -> None:
    """Write the page after a validation, with the curves that are in the folder.

    Args:
        run: the run, whose last validation this was.
        predictor: what was validated.
        dataset: the validation pictures.
        truth: their cells, from :func:`maskrcnn.data.coco.to_coco`.
        results: what was found in them, as COCO results.
        metrics: the scores.
    """
    ap, ap50 = (metrics[f"mask/{name}@{MAX_DETECTIONS}"] for name in ("AP", "AP50"))
    write_report(
        run.folder / PAGE,
        _pictures(dataset, truth, results),
        predictor.class_names,
        title=f"{run.folder.name}, epoch {run.epoch}",
        subtitle=f"{len(dataset)} validation pictures, step {run.step}: mask AP {ap:.3f}, AP50 {ap50:.3f}",
        score_threshold=predictor.score_threshold,
        figure=run.folder / CURVES if run.step > 0 else None,
        most=PICTURES,
    )


def _pictures(dataset: CellDataset, truth: dict[str, Any], results: list[dict[str, Any]]) -> Iterator[ReportPicture]:
    cells, found = _by_picture(truth["annotations"]), _by_picture(results)
    for index, image in enumerate(truth["images"]):
        size, number = (image["height"], image["width"]), image["id"]
        thumbnail = partial(_thumbnail, dataset, index)
        yield ReportPicture(dataset.names[index], size, found[number], thumbnail, cells[number])


def _thumbnail(dataset: CellDataset, index: int) -> Any:
    return dataset.picture(index).reduced(LONGEST_SIDE)


def _by_picture(rows: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["image_id"]].append(row)
    return groups
