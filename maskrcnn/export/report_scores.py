"""What the report says about the results against the true cells: the scores of ``maskrcnn evaluate``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS, coco_metrics
from maskrcnn.evaluation.dense import THRESHOLDS, Counts, count_cells, dense_scores


class ReportScores:
    """Collects the pictures whose true cells are known, and scores them as :mod:`maskrcnn.evaluation` does.

    Args:
        num_classes: of cells.
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
        """Take in a picture of (H, W) pixels; returns its own TP / (TP + FP + FN) at IoU 0.5 as ``value``, None where
        there is no cell, and the numbers of cells found, missed and wrong; a pair is of one class."""
        image = {"id": len(self.images) + 1, "height": size[0], "width": size[1]}
        own = {"image_id": image["id"]}
        numbers = range(len(self.annotations) + 1, len(self.annotations) + 1 + len(truth))
        cells = [{"iscrowd": 0, **cell, **own, "id": number} for number, cell in zip(numbers, truth, strict=True)]
        found = [{**result, **own} for result in results]
        counts = count_cells(self._truth([image], cells), found, self.score_threshold)
        for name, (count,) in counts.items():
            self.counts[name].append(count)
        self.images.append(image)
        self.annotations += cells
        self.results += found
        return _found([count for name, (count,) in counts.items() if name != "any"])

    def summary(self) -> dict[str, Any] | None:
        """The scores of all pictures, overall and by class, as ``mask/AP@1000``, ``mask/AP50@1000`` and ``dense/AP50``
        of :func:`maskrcnn.evaluation.evaluate.score`; None for those of a class without a true cell, and altogether
        where no picture's true cells are known."""
        if not self.images:
            return None
        scores = coco_metrics(self._truth(self.images, self.annotations), self.results, MAX_DETECTIONS)
        scores |= {f"dense/{name}": value for name, value in dense_scores(self.counts).items()}

        def of(suffix: str, counts: Sequence[Counts]) -> dict[str, Any]:
            names = {"ap": f"AP@{MAX_DETECTIONS}", "ap50": f"AP50@{MAX_DETECTIONS}", "value": "dense/AP50"}
            known = {key: scores[name + suffix] for key, name in names.items()}
            return _found(counts) | {key: value if value >= 0 else None for key, value in known.items()}

        by_class = {name: counts for name, counts in self.counts.items() if name != "any"}
        return {
            "pictures": len(self.images),
            "limit": MAX_DETECTIONS,
            **of("", [count for counts in by_class.values() for count in counts]),
            "classes": [of(f"/{name}", counts) for name, counts in by_class.items()],
        }

    def _truth(self, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
        return {"images": images, "annotations": annotations, "categories": self.categories}


def _found(counts: Sequence[Counts]) -> dict[str, Any]:
    matched = sum(int(one.matched[THRESHOLDS.index(0.5)]) for one in counts)
    missed = sum(one.num_truth for one in counts) - matched
    wrong = sum(one.num_predicted for one in counts) - matched
    union = matched + missed + wrong
    return {"value": matched / union if union else None, "found": matched, "missed": missed, "wrong": wrong}
