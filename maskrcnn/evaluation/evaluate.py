"""Evaluation of a predictor on pictures with ground truth, for validation and ``maskrcnn evaluate`` alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.data.coco import to_coco
from maskrcnn.data.dataset import CellDataset
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS, average_precision, coco_metrics, precision_of
from maskrcnn.evaluation.dense import AT, dense_metrics
from maskrcnn.evaluation.plots import plot_classes, plot_precision_recall
from maskrcnn.predict.predictor import Diameter, Predictor
from maskrcnn.structures import Detections

BY_SOURCE = (
    *(f"mask/{name}{limit}" for name in ("AP", "AP50") for limit in ("", f"@{MAX_DETECTIONS}")),
    *(f"dense/{name}" for name in AT),
)
"""The scores that are also reported per source of pictures."""


def evaluate(
    predictor: Predictor,
    dataset: CellDataset,
    diameter: Diameter | None = None,
    truth: dict[str, Any] | None = None,
    plots: Path | None = None,
    show: Callable[[list[dict[str, Any]]], object] | None = None,
) -> dict[str, float]:
    """Predict every picture of a data set as a user would, and compute scores.

    Args:
        predictor: used with its tiles, precision, limits and thresholds.
        dataset: pictures with ground truth.
        diameter: see :meth:`maskrcnn.predict.predictor.Predictor.predict`.
        truth: :func:`maskrcnn.data.coco.to_coco` of the data set, if it was computed already.
        plots: a folder for ``precision_recall.png`` and ``classes.png``; None: no plots.
        show: called in process 0 with the COCO results that were scored.

    Returns:
        :func:`score` of the results. Several processes divide the pictures among them; process 0 computes the scores,
        and all return them.
    """
    found = predict_dataset(predictor, dataset, diameter)

    def score_all() -> dict[str, float]:
        cells = truth if truth is not None else to_coco(dataset)
        results = to_results(dataset, found)
        scores = score(cells, results, predictor.score_threshold, dataset.sources, plots)
        if show is not None:
            show(results)
        return scores

    return distributed.from_main(score_all)


def predict_dataset(
    predictor: Predictor, dataset: CellDataset, diameter: Diameter | Sequence[Diameter] | None = None
) -> list[Detections]:
    """Detections in each picture, in order; ``diameter`` is one for all pictures or one per picture.

    Each of N processes predicts every N-th picture; process 0 returns the results of all, the others an empty list.
    """
    is_single = diameter is None or isinstance(diameter, float | int | str)
    diameters: Any = [diameter] * len(dataset) if is_single else diameter
    found = []
    indices = range(distributed.rank(), len(dataset), distributed.world_size())
    for index in tqdm(indices, desc="validate", leave=False, disable=not distributed.is_main()):
        found.append(predictor.predict(dataset.picture(index), diameter=diameters[index]))
    in_order = itertools.chain.from_iterable(itertools.zip_longest(*distributed.gather(found)))
    return [cells for cells in in_order if cells is not None]


def to_results(dataset: CellDataset, found: Sequence[Detections]) -> list[dict[str, Any]]:
    """The detections of :func:`predict_dataset` as COCO results (RLE as text, classes 1..K)."""
    pairs = zip(dataset.image_ids, found, strict=True)
    return [result for image_id, cells in pairs for result in cells.to_coco(image_id)]


def score(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    score_threshold: float | Sequence[float],
    sources: Sequence[str] | None = None,
    plots: Path | None = None,
) -> dict[str, float]:
    """All scores of COCO results: ``mask/AP@1000``, ``mask/AP50/class1``, ``box/AP``, ``dense/AP50``, ``dense/PQ``, ...

    Args:
        truth, results: see :func:`maskrcnn.evaluation.coco_ap.coco_metrics`.
        score_threshold: see :func:`maskrcnn.evaluation.dense.dense_metrics`.
        sources: source of each picture of ``truth``. If there are several, :data:`BY_SOURCE` are also returned for
            each: ``mask/AP50@1000/tnbc``.
        plots: see :func:`evaluate`.
    """
    metrics, precision = _mask_scores(truth, results, score_threshold)
    metrics |= {f"box/{key}": value for key, value in coco_metrics(truth, results, iou_type="bbox").items()}
    if plots is not None:
        categories = truth["categories"]
        names = [category["name"] for category in categories]
        at_limit = precision[:, :, :, 0, -1]  # every size, the largest number of detections
        plot_precision_recall(at_limit, names, MAX_DETECTIONS, plots / "precision_recall.png")
        cells = [sum(cell["category_id"] == k["id"] for cell in truth["annotations"]) for k in categories]
        plot_classes(metrics, names, cells, plots / "classes.png")
    if sources is not None and len(set(sources)) > 1:
        for source in sorted(set(sources)):
            scores, _ = _mask_scores(*_select_source(truth, results, sources, source), score_threshold)
            metrics.update({f"{key}/{source}": scores[key] for key in BY_SOURCE})
    return metrics


def _mask_scores(
    truth: dict[str, Any], results: list[dict[str, Any]], score_threshold: float | Sequence[float]
) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """The mask scores ``mask/...`` and ``dense/...``, and COCO's precision from :func:`precision_of`."""
    precision, evaluation = precision_of(truth, results, MAX_DETECTIONS, "segm")
    metrics = {f"mask/{key}": value for key, value in average_precision(precision, evaluation).items()}
    metrics |= {f"dense/{key}": value for key, value in dense_metrics(truth, results, score_threshold).items()}
    return metrics, precision


def _select_source(
    truth: dict[str, Any], results: list[dict[str, Any]], sources: Sequence[str], source: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    images = [image for image, image_source in zip(truth["images"], sources, strict=True) if image_source == source]
    ids = {image["id"] for image in images}
    annotations = [annotation for annotation in truth["annotations"] if annotation["image_id"] in ids]
    selected = {**truth, "images": images, "annotations": annotations}
    return selected, [result for result in results if result["image_id"] in ids]
