"""Helpers for RoIs: the boxes of all images of a batch in one tensor, each with the index of its image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn import ops


def join_rois(image: Tensor, boxes: Tensor) -> Tensor:
    """Concatenate image indices [R] and boxes [R, 4] to RoIs [R, 5], in the dtype of the boxes."""
    return torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)


def clip_boxes(boxes: Tensor, image: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Clip boxes to their images; NaN stays NaN.

    Args:
        boxes: float [..., 4], xyxy in pixels.
        image: int64, the image of each box, of a shape that broadcasts to [...].
        sizes: (H, W) of each image in pixels.
    """
    limits = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    return boxes.clamp(min=0).minimum(limits[image])


def large_enough(boxes: Tensor, min_size: float) -> Tensor:
    """Whether both sides of each box [N, 4] are at least ``min_size`` pixels, bool [N]; False for NaN."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(dim=1)


def rank_in_group(group: Tensor) -> Tensor:
    """For each entry of ``group`` (int64 [N]), the number of earlier entries of the same group: int64 [N]."""
    ordered, order = group.sort(stable=True)
    rank = torch.arange(group.shape[0], device=group.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).scatter_(0, order, rank)


def best_of_each_image(
    boxes: Tensor, scores: Tensor, image: Tensor, group: Tensor, nms_threshold: float, min_size: float, limit: int
) -> Tensor:
    """Apply non-maximum suppression within each group and keep the highest-scored boxes of each image.

    Args:
        boxes: float [N, 4], xyxy in pixels; boxes with a NaN or a score that is not finite are dropped first.
        scores: float [N].
        image: int64 [N], the image of each box.
        group: int64 [N], for example one number per image and class; never shared by boxes of different images.
        nms_threshold: IoU above which the lower-scored box of a group is dropped.
        min_size: boxes with a side shorter than this, in pixels, are dropped first.
        limit: maximum number of boxes per image.

    Returns:
        int64 indices of the kept boxes, ordered by image, then by descending score; equal scores in the given order.
    """
    valid = torch.nonzero(large_enough(boxes, min_size) & scores.isfinite()).squeeze(1)
    kept = valid[ops.batched_nms(boxes[valid], scores[valid], group[valid], nms_threshold)]
    kept = kept[rank_in_group(image[kept]) < limit]
    return kept[image[kept].argsort(stable=True)]
