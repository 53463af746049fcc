"""Cells of a picture as run lengths: what files hold, without a network's probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskrcnn.structures.rle import cell_boxes


@dataclass(frozen=True)
class Cells:
    """Cells of one picture, on the CPU.

    Attributes:
        rles: COCO run lengths ``{"size": [H, W], "counts": bytes or text}``, one per cell.
        boxes: float32 [K, 4], xyxy in pixels of the picture: of the masks, or as the network found them.
        scores: float32 [K], 0..1; 1 for true cells.
        labels: int64 [K], classes 1..K.
        size: (H, W) of the picture.
    """

    rles: list[dict[str, Any]]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]

    @classmethod
    def of_masks(cls, rles: list[dict[str, Any]], labels: Sequence[int], size: tuple[int, int]) -> Cells:
        """True cells: in the boxes of their masks, with a score of 1."""
        boxes = torch.from_numpy(cell_boxes(rles)[:, [1, 0, 3, 2]]).float()
        return cls(rles, boxes, torch.ones(len(rles)), torch.tensor(labels, dtype=torch.int64), size)

    @classmethod
    def of_results(cls, results: Sequence[dict[str, Any]], size: tuple[int, int]) -> Cells:
        """The cells of COCO results of one picture (:meth:`to_coco`)."""
        boxes = torch.tensor([result["bbox"] for result in results], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([result["score"] for result in results], dtype=torch.float32)
        labels = torch.tensor([result["category_id"] for result in results], dtype=torch.int64)
        return cls([result["segmentation"] for result in results], boxes, scores, labels, size)

    def __len__(self) -> int:
        return len(self.rles)

    def to_rle(self) -> list[dict[str, Any]]:
        """The run lengths, as :meth:`maskrcnn.structures.Detections.to_rle` has them."""
        return self.rles

    def filter(self, score_threshold: float | Sequence[float]) -> Cells:
        """The cells with a score of at least ``score_threshold``: one number, or one per class 1..K."""
        least: float | Tensor
        if isinstance(score_threshold, float | int):
            least = score_threshold
        else:
            least = self.scores.new_tensor([0.0, *score_threshold])[self.labels]
        keep = torch.nonzero(self.scores >= least)[:, 0]
        rles = [self.rles[index] for index in keep.tolist()]
        return replace(self, rles=rles, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep])

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The cells as COCO results: plain JSON types, RLE counts as text, boxes as [x, y, width, height].

        Boxes are rounded to two decimals, as in COCO's own files, which makes the file a quarter smaller.
        """
        boxes = torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], dim=1).tolist()
        rows = zip(boxes, self.scores.tolist(), self.labels.tolist(), self.rles, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": [round(side, 2) for side in box],
                "score": score,
                "segmentation": {"size": list(rle["size"]), "counts": _text(rle["counts"])},
            }
            for box, score, label, rle in rows
        ]


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
