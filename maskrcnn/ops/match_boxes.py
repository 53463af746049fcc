"""Matching of anchors to ground-truth boxes by IoU (Ren et al. 2015, Faster R-CNN, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn.ops import library  # noqa: F401 (registers the kernels)
from maskrcnn.ops.checks import check_boxes, check_device

BELOW_LOW = -1
BETWEEN = -2


def match_boxes(
    anchors: Tensor,
    targets: Tensor,
    high: float,
    low: float,
    allow_low_quality: bool,
    anchor_counts: Sequence[int] | None = None,
    target_counts: Sequence[int] | None = None,
) -> Tensor:
    """Assign each anchor to the ground-truth box with the highest IoU, to background, or to neither.

    The result is that of torchvision's ``Matcher`` on ``box_iou(targets, anchors)``, but the matrix is never made:
    memory grows with A + G.

    Args:
        anchors: float [A, 4], xyxy; finite.
        targets: float [G, 4], the ground-truth boxes, xyxy; finite.
        high: an anchor whose best IoU is at least this is assigned to its best target.
        low: an anchor whose best IoU is below this is background; between ``low`` and ``high`` it is neither.
        allow_low_quality: also assign an anchor to its best target if it has the highest IoU, or one equal to it, for
            any target. As in torchvision, a target that overlaps no anchor has a highest IoU of 0, which is equal to
            that of every anchor that does not overlap it.
        anchor_counts, target_counts: number of anchors and targets of each image of a batch, in order; anchors are only
            matched to targets of the same image. None: all belong to one image.

    Returns:
        int64 [A]: index into ``targets``, -1 for background, -2 for neither. Of targets with equal IoU, the first is
        taken. Anchors of an image without targets are -1. An undefined IoU (0/0, two boxes without area) counts as 0,
        where torchvision's NaN would match.

    Raises:
        ValueError: for a wrong shape, dtype or device, or ``low`` above ``high``.
        RuntimeError: for counts that do not add up, or a coordinate that is not finite (on the CPU; on a GPU such a box
            overlaps nothing).
    """
    _check(anchors, targets, high, low)
    dtype = torch.promote_types(torch.promote_types(anchors.dtype, targets.dtype), torch.float32)
    # integer arguments would select another overload of the schema's float
    return torch.ops.maskrcnn.match_boxes(
        anchors.detach().to(dtype).contiguous(),
        targets.detach().to(dtype).contiguous(),
        [anchors.shape[0]] if anchor_counts is None else list(anchor_counts),
        [targets.shape[0]] if target_counts is None else list(target_counts),
        float(high),
        float(low),
        allow_low_quality,
    )


def match_boxes_reference(anchors: Tensor, targets: Tensor, high: float, low: float, allow_low_quality: bool) -> Tensor:
    """:func:`match_boxes` for one image with the full IoU matrix, in pure PyTorch."""
    _check(anchors, targets, high, low)
    if len(targets) == 0 or len(anchors) == 0:
        return torch.full((len(anchors),), BELOW_LOW, dtype=torch.int64, device=anchors.device)
    side = torch.minimum(targets[:, None, 2:], anchors[:, 2:]) - torch.maximum(targets[:, None, :2], anchors[:, :2])
    intersection = side.clamp(min=0).prod(2)
    area_targets, area_anchors = ((b[:, 2:] - b[:, :2]).prod(1) for b in (targets, anchors))
    iou = intersection / (area_targets[:, None] + area_anchors - intersection)
    iou = iou.nan_to_num(nan=0.0)
    value, best = iou.max(dim=0)
    matches = torch.where(value < low, BELOW_LOW, torch.where(value < high, BETWEEN, best))
    if allow_low_quality:
        best_of_a_target = (iou == iou.max(dim=1, keepdim=True).values).any(dim=0)
        matches = torch.where(best_of_a_target, best, matches)
    return matches


def _check(anchors: Tensor, targets: Tensor, high: float, low: float) -> None:
    check_boxes("anchors", anchors)
    check_boxes("targets", targets)
    check_device("targets", targets, "anchors", anchors)
    if not low <= high:
        raise ValueError(f"low is {low}, high {high}; expected low <= high")


@torch.library.register_fake("maskrcnn::match_boxes")
def _(
    anchors: Tensor,
    targets: Tensor,
    anchor_counts: Sequence[int],
    target_counts: Sequence[int],
    high: float,
    low: float,
    allow_low_quality: bool,
) -> Tensor:
    return torch.empty(anchors.shape[0], dtype=torch.int64, device=anchors.device)


for _device in ("cpu", "cuda"):  # bfloat16 is too coarse for coordinates
    torch.library.register_autocast("maskrcnn::match_boxes", _device, torch.float32)
