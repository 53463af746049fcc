"""What the network finds in a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn import ops
from maskrcnn.data.rle import label_image


@dataclass(frozen=True)
class Detections:
    """Cells of one picture, highest score first.

    Attributes:
        boxes: float32 [K, 4], xyxy in pixels of the picture; pixel i covers [i, i+1).
        scores: float32 [K], 0..1.
        labels: int64 [K], classes 1..K.
        masks: float [K, M, M], probability that a point of the box belongs to the cell; M = 28. They divide the box
            evenly: column i is for the part from x1 + i / M * (x2 - x1) to x1 + (i + 1) / M * (x2 - x1).
        size: (H, W) of the picture.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]  # not len(), which export cannot trace through
        counts = [values.shape[0] for values in (self.scores, self.labels, self.masks)]
        if self.boxes.shape != (count, 4) or counts != [count] * 3:
            shapes = [tuple(t.shape) for t in (self.boxes, self.scores, self.labels, self.masks)]
            raise ValueError(f"boxes, scores, labels and masks have shapes {shapes}; expected [K,4], [K], [K], [K,M,M]")

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: Tensor) -> Detections:
        """Those that ``keep`` (bool [K] or int64 indices) picks."""
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], self.masks[keep], self.size)

    def filter(self, min_score: float) -> Detections:
        """Those with a score of at least ``min_score``."""
        return self.select(self.scores >= min_score)

    def to(self, device: torch.device | str) -> Detections:
        """All tensors on ``device``."""
        boxes, scores, labels, masks = (t.to(device) for t in (self.boxes, self.scores, self.labels, self.masks))
        return Detections(boxes, scores, labels, masks, self.size)

    def rescale(self, factor: float) -> Detections:
        """The same cells in the picture enlarged by ``factor``."""
        height, width = (max(1, round(side * factor)) for side in self.size)
        scale = self.boxes.new_tensor([width / self.size[1], height / self.size[0]]).repeat(2)
        return Detections(self.boxes * scale, self.scores, self.labels, self.masks, (height, width))

    def to_rle(self, threshold: float = 0.5) -> list[dict[str, Any]]:
        """The masks as COCO RLE dicts ``{"size": [H, W], "counts": bytes}``: pixels of probability > ``threshold``."""
        return ops.masks_to_rle(self.masks, self.boxes, self.size, threshold)

    def to_coco(self, image_id: int, threshold: float = 0.5) -> list[dict[str, Any]]:
        """COCO results of this picture: plain JSON types, RLE counts as text, boxes as [x, y, width, height].

        Boxes are rounded to two decimals, as COCO's are, which makes the file a quarter smaller.
        """
        boxes = torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], dim=1).tolist()
        rows = zip(boxes, self.scores.tolist(), self.labels.tolist(), self.to_rle(threshold), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": [round(side, 2) for side in box],
                "score": score,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
            for box, score, label, rle in rows
        ]

    def to_labels(self, threshold: float = 0.5) -> Tensor:
        """int32 [H, W]: 0 for background, i + 1 for detection i; where cells overlap, the higher score wins."""
        order = torch.argsort(self.scores.cpu(), stable=True).numpy()
        rles = self.to_rle(threshold)
        numbers = np.concatenate([[0], order + 1]).astype(np.int32)  # of the detections in the order of label_image
        return torch.from_numpy(numbers[label_image([rles[index] for index in order], self.size)])
