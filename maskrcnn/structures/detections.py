"""The cells that the network finds in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn import ops
from maskrcnn.structures.cells import Cells
from maskrcnn.structures.rle import label_image


@dataclass(frozen=True)
class Detections:
    """Cells of one picture, highest score first.

    Attributes:
        boxes: float32 [K, 4], xyxy in pixels of the picture; pixel i covers [i, i+1).
        scores: float32 [K], 0..1.
        labels: int64 [K], classes 1..K.
        masks: float [K, M, M], probability that each part of the box belongs to the cell; M = 28. The box is divided
            evenly: column i covers x1 + i / M * (x2 - x1) to x1 + (i + 1) / M * (x2 - x1).
        size: (H, W) of the picture.
        mask_threshold: probability above which a pixel belongs to the cell.
        diameter: the cell diameter that prediction assumed, in pixels of the picture; None: the picture was predicted
            at its own scale.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    size: tuple[int, int]
    mask_threshold: float = 0.5
    diameter: float | None = None

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]  # not len(), which torch.export cannot trace
        counts = [values.shape[0] for values in (self.scores, self.labels, self.masks)]
        if self.boxes.shape != (count, 4) or counts != [count] * 3:
            shapes = [tuple(t.shape) for t in (self.boxes, self.scores, self.labels, self.masks)]
            raise ValueError(f"boxes, scores, labels and masks have shapes {shapes}; expected [K,4], [K], [K], [K,M,M]")

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: Tensor) -> Detections:
        """The detections that ``keep`` (bool [K] or int64 indices) selects."""
        boxes, scores, labels, masks = (t[keep] for t in (self.boxes, self.scores, self.labels, self.masks))
        return replace(self, boxes=boxes, scores=scores, labels=labels, masks=masks)

    def filter(self, score_threshold: float | Sequence[float]) -> Detections:
        """The detections with a score of at least ``score_threshold``: one number, or one per class 1..K."""
        if isinstance(score_threshold, float | int):
            return self.select(self.scores >= score_threshold)
        return self.select(self.scores >= self.scores.new_tensor([0.0, *score_threshold])[self.labels])

    def to(self, device: torch.device | str) -> Detections:
        """All tensors on ``device``."""
        boxes, scores, labels, masks = (t.to(device) for t in (self.boxes, self.scores, self.labels, self.masks))
        return replace(self, boxes=boxes, scores=scores, labels=labels, masks=masks)

    def resized(self, size: tuple[int, int]) -> Detections:
        """The detections in the picture resized to ``size`` (H, W)."""
        if size == self.size:
            return self
        scale_x, scale_y = size[1] / self.size[1], size[0] / self.size[0]
        diameter = None if self.diameter is None else self.diameter * (scale_x * scale_y) ** 0.5
        boxes = self.boxes * self.boxes.new_tensor([scale_x, scale_y] * 2)
        return replace(self, boxes=boxes, size=size, diameter=diameter)

    def to_rle(self, threshold: float | None = None) -> list[dict[str, Any]]:
        """The masks as COCO RLE dicts ``{"size": [H, W], "counts": bytes}``: the pixels whose probability is above
        ``threshold`` (default: ``mask_threshold``)."""
        return ops.masks_to_rle(
            self.masks, self.boxes, self.size, self.mask_threshold if threshold is None else threshold
        )

    def to_cells(self, threshold: float | None = None) -> Cells:
        """The detections on the CPU with their masks as run lengths (:meth:`to_rle`) instead of probabilities."""
        boxes, scores, labels = (values.cpu() for values in (self.boxes, self.scores, self.labels))
        return Cells(self.to_rle(threshold), boxes, scores, labels, self.size)

    def to_coco(self, image_id: int, threshold: float | None = None) -> list[dict[str, Any]]:
        """The detections as COCO results, see :meth:`maskrcnn.structures.cells.Cells.to_coco`."""
        return self.to_cells(threshold).to_coco(image_id)

    def to_labels(self, threshold: float | None = None) -> Tensor:
        """Label image int32 [H, W]: 0 for background, i + 1 for detection i; where cells overlap, the higher score
        wins."""
        order = torch.argsort(self.scores.cpu(), stable=True).numpy()
        rles = self.to_rle(threshold)
        numbers = np.concatenate([[0], order + 1]).astype(np.int32)  # by value in the label image below
        return torch.from_numpy(numbers[label_image([rles[index] for index in order], self.size)])
