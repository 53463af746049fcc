"""Matching of anchors to ground-truth boxes by IoU (Ren et al. 2015, Faster R-CNN, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn.ops.checks import check_boxes, check_device, refuse_any
from maskrcnn.ops.library import reference

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
    """:func:`match_boxes` for one image by its definition, one target after the other, in pure PyTorch."""
    _check(anchors, targets, high, low)
    best = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    value = torch.zeros(len(anchors), dtype=torch.promote_types(anchors.dtype, targets.dtype), device=anchors.device)
    best_of_a_target = torch.zeros_like(best, dtype=torch.bool)
    if len(targets) == 0 or len(anchors) == 0:
        return torch.full_like(best, BELOW_LOW)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(1)
    for index, target in enumerate(targets):
        side = torch.minimum(target[2:], anchors[:, 2:]) - torch.maximum(target[:2], anchors[:, :2])
        intersection = side.clamp(min=0).prod(1)
        iou = intersection / ((target[2:] - target[:2]).prod() + area - intersection)
        iou = iou.nan_to_num(nan=0.0)
        best_of_a_target |= iou == iou.max()
        best[iou > value] = index
        value = torch.maximum(value, iou)
    matches = torch.where(value < low, BELOW_LOW, torch.where(value < high, BETWEEN, best))
    return torch.where(best_of_a_target, best, matches) if allow_low_quality else matches


def _check(anchors: Tensor, targets: Tensor, high: float, low: float) -> None:
    check_boxes("anchors", anchors)
    check_boxes("targets", targets)
    check_device("targets", targets, "anchors", anchors)
    if not low <= high:
        raise ValueError(f"low is {low}, high {high}; expected low <= high")


@reference("match_boxes")
def _(
    anchors: Tensor,
    targets: Tensor,
    anchor_counts: Sequence[int],
    target_counts: Sequence[int],
    high: float,
    low: float,
    allow_low_quality: bool,
) -> Tensor:
    for name, boxes in (("anchors", anchors), ("targets", targets)):
        refuse_any(~boxes.isfinite(), name + ": a coordinate of box {} is not finite")
    matches, first = [], 0
    for own, cells in zip(anchors.split(list(anchor_counts)), targets.split(list(target_counts)), strict=True):
        match = match_boxes_reference(own, cells, high, low, allow_low_quality)
        matches.append(torch.where(match >= 0, match + first, match))
        first += len(cells)
    return torch.cat(matches) if matches else torch.empty(0, dtype=torch.int64, device=anchors.device)


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
