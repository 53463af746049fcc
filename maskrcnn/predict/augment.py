"""Test-time augmentation: averages the detections in several views of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.predict.masks import resample_masks
from maskrcnn.structures import Detections

Augment = Literal["none", "flips", "rotations", "scales"]
"""``flips``: the picture and its mirror images (4 views); ``rotations``: also rotated by 90 degrees (8); ``scales``:
also at 4/5 and 5/4 of its size (10)."""

SCALES = (0.8, 1.25)
SAME_CELL = 0.5
"""IoU of boxes above which detections of several views are the same cell."""


@dataclass(frozen=True)
class View:
    """A transformation of a picture: transposed (first), mirrored horizontally and vertically, resized by ``scale``."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False
    scale: float = 1.0

    def image(self, image: Tensor) -> Tensor:
        """Transform an image: uint8 [H, W, 3] -> uint8 [h, w, 3]."""
        image = image.transpose(0, 1) if self.transpose else image
        axes = [axis for axis, on in ((0, self.mirror_y), (1, self.mirror_x)) if on]
        image = image.flip(axes) if axes else image
        if self.scale == 1:
            return image
        size = [max(1, round(side * self.scale)) for side in image.shape[:2]]
        pixels = image.permute(2, 0, 1)[None].float()
        enlarged = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return enlarged[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)

    def invert(self, cells: Detections, size: tuple[int, int]) -> Detections:
        """Transform detections in the view to the original picture of ``size`` (H, W)."""
        height, width = size[::-1] if self.transpose else size
        boxes = cells.boxes * cells.boxes.new_tensor([width / cells.size[1], height / cells.size[0]]).repeat(2)
        masks = cells.masks
        if self.mirror_y:
            boxes = torch.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], dim=1)
            masks = masks.flip(1)
        if self.mirror_x:
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            masks = masks.flip(2)
        if self.transpose:
            boxes, masks = boxes[:, [1, 0, 3, 2]], masks.transpose(1, 2)
        return replace(cells, boxes=boxes, masks=masks, size=size)


def views(augment: Augment) -> list[View]:
    """The views of an augmentation, the picture itself first."""
    if augment not in get_args(Augment):
        raise ValueError(f"augment is {augment}; expected one of {', '.join(get_args(Augment))}")
    if augment == "none":
        return [View()]
    transpose = (False,) if augment == "flips" else (False, True)
    dihedral = [View(t, x, y) for t in transpose for x in (False, True) for y in (False, True)]
    return dihedral + ([View(scale=scale) for scale in SCALES] if augment == "scales" else [])


def detect_in_views(
    detect: Callable[[Sequence[Tensor]], list[Detections]], images: Sequence[Tensor], augment: Augment
) -> list[Detections]:
    """Detect the cells of each image, averaged over its views.

    Args:
        detect: images uint8 [H, W, 3] of one size -> detections of each.
        images: uint8 [H, W, 3], of one size.
    """
    all_views = views(augment)
    if len(all_views) == 1:
        return detect(images)
    found = [detect([view.image(image) for image in images]) for view in all_views]
    return [
        average(
            [
                view.invert(detections[i], (image.shape[0], image.shape[1]))
                for view, detections in zip(all_views, found, strict=True)
            ]
        )
        for i, image in enumerate(images)
    ]


def average(detections: Sequence[Detections]) -> Detections:
    """Merge the detections of several views of the same picture.

    Detections of one class are grouped greedily: in order of descending score, each joins the detections of other views
    that overlap it by more than :data:`SAME_CELL`, at most one per view. The score of a group is the mean over all
    views (0 for a view without a detection); its box is the mean weighted by the scores, and so is its mask, after
    resampling the masks to that box.
    """
    boxes, scores, labels, masks = (
        torch.cat([getattr(cells, name) for cells in detections]) for name in ("boxes", "scores", "labels", "masks")
    )
    if not len(boxes):
        return detections[0]
    view = torch.repeat_interleave(torch.tensor([len(cells) for cells in detections]))
    first, group = _group(boxes, scores, labels, view).unique(return_inverse=True)
    weight = scores / torch.zeros(len(first)).index_add_(0, group, scores)[group]
    mean_boxes = torch.zeros(len(first), 4).index_add_(0, group, weight[:, None] * boxes)
    resampled = resample_masks(masks, boxes, mean_boxes[group])
    mean_masks = torch.zeros(len(first), *masks.shape[1:]).index_add_(0, group, weight[:, None, None] * resampled)
    mean_scores = torch.zeros(len(first)).index_add_(0, group, scores) / len(detections)
    order = mean_scores.argsort(descending=True, stable=True)
    return replace(
        detections[0],
        boxes=mean_boxes[order],
        scores=mean_scores[order],
        labels=labels[first[order]],
        masks=mean_masks[order],
    )


def _group(boxes: Tensor, scores: Tensor, labels: Tensor, view: Tensor) -> Tensor:
    """For each detection the index of the highest-scored one of its group, int64 [N]."""
    leader = torch.full((len(boxes),), -1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    for index in scores.argsort(descending=True, stable=True).tolist():
        if leader[index] >= 0:
            continue
        leader[index] = index
        free = torch.nonzero((leader < 0) & (labels == labels[index]) & (view != view[index])).squeeze(1)
        sides = torch.minimum(boxes[free, 2:], boxes[index, 2:]) - torch.maximum(boxes[free, :2], boxes[index, :2])
        intersection = sides.clamp(min=0).prod(dim=1)
        iou = intersection / (areas[free] + areas[index] - intersection)
        overlapping = iou > SAME_CELL
        free, iou = free[overlapping], iou[overlapping]
        for other_view in view[free].unique():
            candidates = free[view[free] == other_view]
            leader[candidates[iou[view[free] == other_view].argmax()]] = index
    return leader
