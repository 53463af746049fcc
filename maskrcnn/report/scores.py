"""Scores of the report against ground truth, the same as those of ``maskrcnn evaluate``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS, coco_metrics
from maskrcnn.evaluation.dense import THRESHOLDS, Counts, count_cells, dense_scores


class ReportScores:
    """Collects pictures with ground truth and scores them with :mod:`maskrcnn.evaluation`.

    Args:
        num_classes: number of cell classes.
        score_threshold: see :func:`maskrcnn.evaluation.dense.dense_metrics`.
    """

    def __init__(self, num_classes: int, score_threshold: float | Sequence[float]) -> None:
        self.categories = [{"id": k, "name": str(k)} for k in range(1, num_classes + 1)]
        self.score_threshold = score_threshold
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.counts: dict[str, list[Counts]] = defaultdict(list)

    def add(
        self, size: tuple[int, int], truth: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """Add a picture of (H, W) pixels; returns its TP / (TP + FP + FN) at IoU 0.5 as ``value`` (None without cells),
        and the numbers of cells ``found``, ``missed`` and ``wrong``; cells are matched within classes."""
        image = {"id": len(self.images) + 1, "height": size[0], "width": size[1]}
        image_id = {"image_id": image["id"]}
        numbers = range(len(self.annotations) + 1, len(self.annotations) + 1 + len(truth))
        cells = [{"iscrowd": 0, **cell, **image_id, "id": number} for number, cell in zip(numbers, truth, strict=True)]
        found = [{**result, **image_id} for result in results]
        counts = count_cells(self._truth([image], cells), found, self.score_threshold)
        for name, (count,) in counts.items():
            self.counts[name].append(count)
        self.images.append(image)
        self.annotations += cells
        self.results += found
        return _found([count for name, (count,) in counts.items() if name != "any"])

    def summary(self) -> dict[str, Any] | None:
        """The scores of all pictures, overall and by class: ``mask/AP@1000``, ``mask/AP50@1000`` and ``dense/AP50`` of
        :func:`maskrcnn.evaluation.evaluate.score`, None for a class without true cells; None without pictures."""
        if not self.images:
            return None
        scores = coco_metrics(self._truth(self.images, self.annotations), self.results, MAX_DETECTIONS)
        scores |= {f"dense/{name}": value for name, value in dense_scores(self.counts).items()}

        def row(suffix: str, counts: Sequence[Counts]) -> dict[str, Any]:
            names = {"ap": f"AP@{MAX_DETECTIONS}", "ap50": f"AP50@{MAX_DETECTIONS}", "value": "dense/AP50"}
            known = {key: scores[name + suffix] for key, name in names.items()}
            return _found(counts) | {key: value if value >= 0 else None for key, value in known.items()}

        by_class = {name: counts for name, counts in self.counts.items() if name != "any"}
        return {
            "pictures": len(self.images),
            "limit": MAX_DETECTIONS,
            **row("", [count for counts in by_class.values() for count in counts]),
            "classes": [row(f"/{name}", counts) for name, counts in by_class.items()],
        }

    def _truth(self, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
        return {"images": images, "annotations": annotations, "categories": self.categories}


def _found(counts: Sequence[Counts]) -> dict[str, Any]:
    matched = sum(int(count.matched[THRESHOLDS.index(0.5)]) for count in counts)
    missed = sum(count.num_truth for count in counts) - matched
    wrong = sum(count.num_predicted for count in counts) - matched
    union = matched + missed + wrong
    return {"value": matched / union if union else None, "found": matched, "missed": missed, "wrong": wrong}
