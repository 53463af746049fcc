"""Test-time augmentation: a picture is looked at in several views, and what they find is averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.predict.masks import laid_over
from maskrcnn.structures import Detections

Augment = Literal["none", "flips", "rotations", "scales"]
"""``flips``: the picture and its mirror images (4 views); ``rotations``: those of the picture turned by 90 degrees, too
(8); ``scales``: besides these, the picture at 4/5 and 5/4 of its size (10)."""

SCALES = (0.8, 1.25)
SAME_CELL = 0.5
"""Overlap (IoU) of boxes from which detections of several views are one cell."""


@dataclass(frozen=True)
class View:
    """The picture transposed (first), mirrored left to right, mirrored top to bottom, and enlarged by ``scale``."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False
    scale: float = 1.0

    def image(self, image: Tensor) -> Tensor:
        """uint8 [H, W, 3] -> the view of it, uint8 [h, w, 3]."""
        image = image.transpose(0, 1) if self.transpose else image
        axes = [axis for axis, on in ((0, self.mirror_y), (1, self.mirror_x)) if on]
        image = image.flip(axes) if axes else image
        if self.scale == 1:
            return image
        size = [max(1, round(side * self.scale)) for side in image.shape[:2]]
        pixels = image.permute(2, 0, 1)[None].float()
        enlarged = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return enlarged[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)

    def back(self, cells: Detections, size: tuple[int, int]) -> Detections:
        """The view's cells in the picture of ``size`` (H, W) that it was made of."""
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
    turns = (False,) if augment == "flips" else (False, True)
    dihedral = [View(t, x, y) for t in turns for x in (False, True) for y in (False, True)]
    return dihedral + ([View(scale=scale) for scale in SCALES] if augment == "scales" else [])


def detect_in_views(
    detect: Callable[[Sequence[Tensor]], list[Detections]], images: Sequence[Tensor], augment: Augment
) -> list[Detections]:
    """The cells of each image, averaged over its views.

    Args:
        detect: images uint8 [H, W, 3] of one size -> detections of each.
        images: uint8 [H, W, 3], of one size.
    """
    chosen = views(augment)
    if len(chosen) == 1:
        return detect(images)
    found = [detect([view.image(image) for image in images]) for view in chosen]
    return [
        average(
            [
                view.back(of_view[i], (image.shape[0], image.shape[1]))
                for view, of_view in zip(chosen, found, strict=True)
            ]
        )
        for i, image in enumerate(images)
    ]


def average(of_views: Sequence[Detections]) -> Detections:
    """One list of cells from those of several views of the same picture.

    Detections of one class are put together greedily: the best one takes those of the other views that overlap it by
    more than :data:`SAME_CELL`, at most one a view. The cell's score is their mean over all views (a view that did not
    find it counts as 0), its box their mean weighted by the scores, and so is its mask, each laid over that box.
    """
    boxes, scores, labels, masks = (
        torch.cat([getattr(cells, name) for cells in of_views]) for name in ("boxes", "scores", "labels", "masks")
    )
    if not len(boxes):
        return of_views[0]
    view = torch.repeat_interleave(torch.tensor([len(cells) for cells in of_views]))
    leader = _leaders(boxes, scores, labels, view)
    first, group = leader.unique(return_inverse=True)
    weight = scores / torch.zeros(len(first)).index_add_(0, group, scores)[group]
    mean_boxes = torch.zeros(len(first), 4).index_add_(0, group, weight[:, None] * boxes)
    laid = laid_over(masks, boxes, mean_boxes[group])
    mean_masks = torch.zeros(len(first), *masks.shape[1:]).index_add_(0, group, weight[:, None, None] * laid)
    mean_scores = torch.zeros(len(first)).index_add_(0, group, scores) / len(of_views)
    order = mean_scores.argsort(descending=True, stable=True)
    return replace(
        of_views[0],
        boxes=mean_boxes[order],
        scores=mean_scores[order],
        labels=labels[first[order]],
        masks=mean_masks[order],
    )


def _leaders(boxes: Tensor, scores: Tensor, labels: Tensor, view: Tensor) -> Tensor:
    """int64 [N]: the detection that each one belongs to; the leaders belong to themselves."""
    leader = torch.full((len(boxes),), -1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    for index in scores.argsort(descending=True, stable=True).tolist():
        if leader[index] >= 0:
            continue
        leader[index] = index
        free = torch.nonzero((leader < 0) & (labels == labels[index]) & (view != view[index])).squeeze(1)
        sides = torch.minimum(boxes[free, 2:], boxes[index, 2:]) - torch.maximum(boxes[free, :2], boxes[index, :2])
        shared = sides.clamp(min=0).prod(dim=1)
        iou = shared / (areas[free] + areas[index] - shared)
        near = iou > SAME_CELL
        free, iou = free[near], iou[near]
        for of_view in view[free].unique():
            candidates = free[view[free] == of_view]
            leader[candidates[iou[view[free] == of_view].argmax()]] = index
    return leader
