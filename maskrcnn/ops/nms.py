"""Non-maximum suppression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskrcnn.ops.checks import at_least_float32, check_boxes, check_device, check_range, check_vector, refuse_any
from maskrcnn.ops.library import reference
from maskrcnn.options import Range

ANY = Range(-math.inf, math.inf)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression with the contract of ``torchvision.ops.nms``, ties included.

    In order of descending score (equal scores in the given order), a box is kept if its IoU with every box kept so far
    is at most the threshold. Time is near-linear in N for boxes that are small compared to the image.

    Args:
        boxes: float [N, 4], xyxy in pixels; no NaN.
        scores: float [N].
        iou_threshold: boxes with an IoU above it are dropped, not those at it.

    Returns:
        int64 indices of the kept boxes, highest score first.

    Raises:
        ValueError: for a wrong shape, dtype or device, or a threshold that is NaN.
        RuntimeError: for a NaN coordinate (on the CPU; on a GPU such a box is kept and suppresses nothing).
    """
    _check(boxes, scores, scores)
    order, is_kept = _kernel(boxes, scores, None, iou_threshold)
    return order.masked_select(is_kept)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group, with the contract of ``torchvision.ops.batched_nms``.

    Boxes of different groups never suppress one another. Group numbers are compared, instead of adding an offset per
    group to the coordinates, so that no precision is lost.

    Args:
        boxes: float [N, 4], xyxy in pixels; no NaN.
        scores: float [N].
        idxs: integer [N], the group (class, pyramid level) of each box.
        iou_threshold: boxes with an IoU above it are dropped, not those at it.

    Returns:
        int64 indices of the kept boxes, highest score first; equal scores in the given order.

    Raises:
        ValueError: for a wrong shape, dtype or device, or a threshold that is NaN.
        RuntimeError: for a NaN coordinate (on the CPU; on a GPU such a box is kept and suppresses nothing).
    """
    order, is_kept = ranked_nms(boxes, scores, idxs, iou_threshold)
    return order.masked_select(is_kept)


def ranked_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """:func:`batched_nms` with results of fixed size, so that the host need not wait for a GPU.

    Args, errors: see :func:`batched_nms`.

    Returns:
        int64 [N], the indices of all boxes, highest score first, equal scores in the given order; and bool [N], whether
        each of them, in this order, is kept.
    """
    _check(boxes, scores, idxs)
    if idxs.is_floating_point() or idxs.is_complex():
        raise ValueError(f"idxs has dtype {idxs.dtype}; expected an integer type")
    return _kernel(boxes, scores, idxs.to(torch.int64).contiguous(), iou_threshold)


def _kernel(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> tuple[Tensor, Tensor]:
    check_range("iou_threshold", iou_threshold, ANY)
    boxes, scores = (at_least_float32(t.detach()).contiguous() for t in (boxes, scores))
    return torch.ops.maskrcnn.nms(boxes, scores, idxs, float(iou_threshold))


def nms_reference(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` by its definition, in pure PyTorch, O(N^2)."""
    _check(boxes, scores, scores)
    remaining = scores.argsort(descending=True, stable=True)
    keep = []
    while len(remaining):
        first, remaining = remaining[:1], remaining[1:]
        keep.append(first)
        remaining = remaining[~(_iou(boxes[first], boxes[remaining]).double() > iou_threshold)]
    return torch.cat(keep) if keep else remaining


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of one box [1, 4] with each of [N, 4]: [N]."""
    side = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    intersection = side.clamp(min=0).prod(1)
    return intersection / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - intersection)


def _check(boxes: Tensor, scores: Tensor, idxs: Tensor) -> None:
    check_boxes("boxes", boxes)
    check_vector("scores", scores, boxes.shape[0])
    check_vector("idxs", idxs, boxes.shape[0])
    if not scores.is_floating_point():
        raise ValueError(f"scores has dtype {scores.dtype}; expected a floating point type")
    check_device("scores", scores, "boxes", boxes)
    check_device("idxs", idxs, "boxes", boxes)


@reference("nms")
def _(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> tuple[Tensor, Tensor]:
    refuse_any(boxes.isnan(), "boxes: a coordinate of box {} is NaN")
    keep = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    group_of = torch.zeros_like(scores, dtype=torch.int64) if idxs is None else idxs
    for group in group_of.unique():
        members = (group_of == group).nonzero()[:, 0]
        keep[members[nms_reference(boxes[members], scores[members], iou_threshold)]] = True
    order = scores.argsort(descending=True, stable=True)
    return order, keep[order]


@torch.library.register_fake("maskrcnn::nms")
def _(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores, dtype=torch.int64), torch.empty_like(scores, dtype=torch.bool)


for _device in ("cpu", "cuda"):  # boxes in bfloat16 would be wrong by pixels
    torch.library.register_autocast("maskrcnn::nms", _device, torch.float32)
