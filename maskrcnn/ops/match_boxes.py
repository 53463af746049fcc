"""Matching of anchors with targets by overlap (Ren et al. 2015, Faster R-CNN, section 3.1.2)."""

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
    """For each anchor the target that it overlaps most: torchvision's ``Matcher`` on ``box_iou(targets, anchors)``,
    without that matrix; memory grows with A + G.

    Args:
        anchors: float [A, 4], xyxy; finite.
        targets: float [G, 4], xyxy; finite.
        high: an anchor with a best IoU of at least this belongs to its best target.
        low: one with a best IoU below this is background; one in between is neither.
        allow_low_quality: an anchor that is the best, or among the equally best, of some target belongs to its own best
            target whatever the overlap. As in torchvision, a target that no anchor touches has a best IoU of 0, which
            every anchor that does not touch it equals.
        anchor_counts, target_counts: how many anchors and targets each image of a batch has, one image after another;
            anchors are matched with their own image's targets alone. None: all are of one image.

    Returns:
        int64 [A]: index into ``targets``, -1 for background, -2 for neither. Equal overlaps: the first target. Anchors
        of an image without targets are -1. An IoU without a value (0/0, two boxes without area) counts as 0, where
        torchvision's NaN would match.

    Raises:
        ValueError: for a wrong shape, dtype or device, or ``low`` above ``high``.
        RuntimeError: for counts that do not add up, or (on the CPU; on a GPU such a box overlaps nothing) a coordinate
            that is not finite.
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
    """:func:`match_boxes` of one image on the full matrix of overlaps, in pure PyTorch."""
    _check(anchors, targets, high, low)
    if len(targets) == 0 or len(anchors) == 0:
        return torch.full((len(anchors),), BELOW_LOW, dtype=torch.int64, device=anchors.device)
    side = torch.minimum(targets[:, None, 2:], anchors[:, 2:]) - torch.maximum(targets[:, None, :2], anchors[:, :2])
    intersection = side.clamp(min=0).prod(2)
    area_targets, area_anchors = ((b[:, 2:] - b[:, :2]).prod(1) for b in (targets, anchors))
    iou = intersection / (area_targets[:, None] + area_anchors - intersection)
    iou = iou.nan_to_num(nan=0.0)
    value, nearest = iou.max(dim=0)
    matches = torch.where(value < low, BELOW_LOW, torch.where(value < high, BETWEEN, nearest))
    if allow_low_quality:
        reached = (iou == iou.max(dim=1, keepdim=True).values).any(dim=0)
        matches = torch.where(reached, nearest, matches)
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


for _device in ("cpu", "cuda"):  # overlaps of boxes in bfloat16 mean nothing
    torch.library.register_autocast("maskrcnn::match_boxes", _device, torch.float32)
