"""Boxes of all images of a batch in one array, each with the index of its image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn import ops


def join_rois(image: Tensor, boxes: Tensor) -> Tensor:
    """Image index [R] and boxes [R, 4] xyxy -> RoIs [R, 5] in the dtype of the boxes, the index in front."""
    return torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)


def clip_boxes(boxes: Tensor, image: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes with every coordinate moved into their image; NaN stays NaN.

    Args:
        boxes: float [..., 4], xyxy in pixels.
        image: int64, the image of each box, of a shape that broadcasts to [...].
        sizes: (H, W) of each image in pixels.
    """
    limits = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    return boxes.clamp(min=0).minimum(limits[image])


def large_enough(boxes: Tensor, min_size: float) -> Tensor:
    """bool [N]: both sides of the box [N, 4] have at least ``min_size`` pixels; False for NaN."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(dim=1)


def rank_in_group(group: Tensor) -> Tensor:
    """int64 [N]: how many entries of the same group (int64 [N]) come before each entry."""
    ordered, order = group.sort(stable=True)
    rank = torch.arange(group.shape[0], device=group.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).scatter_(0, order, rank)


def best_of_each_image(
    boxes: Tensor, scores: Tensor, image: Tensor, group: Tensor, nms_threshold: float, min_size: float, limit: int
) -> Tensor:
    """Non-maximum suppression within each group of boxes, then the best of each image.

    Args:
        boxes: float [N, 4], xyxy in pixels; a box with a NaN, a shorter side below ``min_size`` pixels or a score that
            is not finite is dropped before the suppression.
        scores: float [N].
        image: int64 [N], the image of each box.
        group: int64 [N], for example one number for each image and class; boxes of different images differ in it.
        nms_threshold: IoU above which the lower-scored box of a group is dropped.
        limit: most boxes kept of each image.

    Returns:
        int64 indices of the kept boxes, ordered by image, then from high to low score; equal scores in the given order.
    """
    usable = torch.nonzero(large_enough(boxes, min_size) & scores.isfinite()).squeeze(1)
    kept = usable[ops.batched_nms(boxes[usable], scores[usable], group[usable], nms_threshold)]
    kept = kept[rank_in_group(image[kept]) < limit]
    return kept[image[kept].argsort(stable=True)]
