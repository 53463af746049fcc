"""Helpers for the boxes of a batch, which are kept in tensors of fixed size: one row per image, padded with boxes
without area, so that a GPU is not asked how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn import ops


def join_rois(boxes: Tensor) -> Tensor:
    """Boxes [B, N, 4] -> RoIs [B, N, 5]: the index of the image, then the box."""
    image = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
    return torch.cat([image[:, None, None].expand(-1, boxes.shape[1], 1), boxes], dim=2)


def clip_boxes(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Clip boxes [B, ..., 4], xyxy in pixels, to their images of ``sizes`` (H, W); NaN stays NaN."""
    clipped = boxes.clamp(min=0)
    for image, (height, width) in enumerate(sizes):  # numbers, not a tensor of them, which would have to be copied
        clipped[image, ..., 0::2].clamp_(max=width)
        clipped[image, ..., 1::2].clamp_(max=height)
    return clipped


def large_enough(boxes: Tensor, min_size: float) -> Tensor:
    """Whether both sides of each box [..., 4] are at least ``min_size`` pixels, bool [...]; False for NaN."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(dim=-1)


def has_area(boxes: Tensor) -> Tensor:
    """Whether each box [..., 4] has an area, bool [...]; those without are padding."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def best_of_each_image(
    boxes: Tensor, scores: Tensor, group: Tensor, nms_threshold: float, min_size: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Apply non-maximum suppression within each group and keep the highest-scored boxes of each image.

    Args:
        boxes: float [B, N, 4], xyxy in pixels; boxes with a NaN or a score that is not finite are dropped first.
        scores: float [B, N].
        group: int64 [B, N], 0 or more, for example the class of each box.
        nms_threshold: IoU above which the lower-scored box of a group of the same image is dropped; 0 or more.
        min_size: boxes with a side shorter than this, in pixels, are dropped first.
        limit: maximum number of boxes per image.

    Returns:
        Int64 indices [B, min(limit, N)] of the kept boxes of each image, by descending score, equal scores in the given
        order; and whether there are as many, bool of the same shape. What follows the last one is any other index.
    """
    images, count = scores.shape
    image = torch.arange(images, device=scores.device)[:, None]
    valid = large_enough(boxes, min_size) & scores.isfinite()
    # What is dropped has no area, so that it suppresses nothing, and a group of its own, so that nobody compares it.
    boxes = boxes.where(valid[..., None], 0)
    group = torch.where(valid, group * images + image, ~image)
    order, is_kept = ops.ranked_nms(boxes.flatten(0, 1), scores.flatten(), group.flatten(), nms_threshold)
    last = images * count
    rank = torch.where(is_kept, torch.arange(last, device=order.device), last)
    rank = torch.empty_like(rank).scatter_(0, order, rank).view(images, count).masked_fill(~valid, last)
    best, index = rank.topk(min(limit, count), dim=1, largest=False)
    return index, best < last


def read_counts(counts: Tensor) -> list[int]:
    """Read int64 [N] on the host. Nothing else in the network waits for a GPU: sizes that depend on data come from
    here."""
    values: list[int] = counts.tolist()
    return values
