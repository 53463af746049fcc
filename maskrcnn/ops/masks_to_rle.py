"""From the network's small masks to COCO run lengths in the picture's size, without a mask of that size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn.ops.checks import check_boxes

PADDING = 1
"""Zeros around each mask before it is enlarged, so that its outline can end inside the box."""


def masks_to_rle(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> list[dict[str, Any]]:
    """The pixels where each mask, enlarged into its box, is above ``threshold``, as COCO RLE.

    Byte for byte what torchvision's ``paste_masks_in_image`` > threshold and ``pycocotools.mask.encode`` give, but each
    mask is enlarged inside its own box only (the part of it that lies in the picture), never to the picture's size.

    Args:
        masks: float [K, M, M], probabilities.
        boxes: float [K, 4], xyxy in pixels; they may reach beyond the picture.
        size: (H, W) of the picture.
        threshold: a pixel belongs to the cell above it.

    Returns:
        For each mask ``{"size": [H, W], "counts": bytes}``.

    Raises:
        ValueError: for a wrong shape or dtype, or a box that is not finite.
    """
    check_boxes("boxes", boxes)
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2] or len(masks) != len(boxes):
        raise ValueError(f"masks has shape {tuple(masks.shape)}; expected [{len(boxes)}, M, M]")
    if not masks.is_floating_point():
        raise ValueError(f"masks has dtype {masks.dtype}; expected a floating point type")
    if not boxes.isfinite().all():
        raise ValueError("boxes: a coordinate is not finite")
    height, width = size
    if not len(masks):
        return []
    padded = F.pad(masks.detach().float().cpu(), (PADDING,) * 4)
    corners = _pixel_boxes(boxes.detach().float().cpu(), masks.shape[-1]).tolist()
    runs = [
        {"size": [height, width], "counts": _runs(mask, corner, height, width, threshold)}
        for mask, corner in zip(padded, corners, strict=True)
    ]
    return coco_mask.frPyObjects(runs, height, width)


def _pixel_boxes(boxes: Tensor, mask_size: int) -> Tensor:
    """int64 [K, 4]: the boxes grown about their centres as the masks are by their padding, cut to whole pixels."""
    scale = float(mask_size + 2 * PADDING) / mask_size
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat([center - half, center + half], dim=1).to(torch.int64)


def _runs(mask: Tensor, corner: list[int], height: int, width: int, threshold: float) -> list[int]:
    """COCO's uncompressed run lengths, in column order, background first."""
    x1, y1, x2, y2 = corner
    box_h, box_w = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    left, top = max(x1, 0), max(y1, 0)
    right, bottom = min(x1 + box_w, width), min(y1 + box_h, height)
    if right <= left or bottom <= top:
        return [height * width]
    rows = _axis_samples(mask.shape[0], box_h, top - y1, bottom - y1)
    columns = _axis_samples(mask.shape[1], box_w, left - x1, right - x1)
    inside = _bilinear(mask, rows, columns) > threshold
    # in column order every column of the box is a stretch of pixels; a change of value starts a run
    columns_first = np.zeros((right - left, bottom - top + 2), dtype=np.int8)
    columns_first[:, 1:-1] = inside.T.numpy()
    column, edge = np.nonzero(np.diff(columns_first, axis=1))
    position = (column + left) * height + edge + top
    if len(position) == 0:
        return [height * width]
    # runs that touch across two columns (a cell at the bottom and at the top of the picture) are one
    starts, stops = position[0::2], position[1::2]
    joined = np.concatenate([[True], starts[1:] != stops[:-1]])
    edges = np.stack([starts[joined], stops[np.concatenate([joined[1:], [True]])]], axis=1).reshape(-1)
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    return counts if counts[-1] else counts[:-1]


def _axis_samples(mask_size: int, box_size: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels below and above, and the weight above, of positions start..stop of a mask enlarged to ``box_size``: the
    float32 arithmetic of ``F.interpolate(mode="bilinear", align_corners=False)``."""
    scale = torch.tensor(mask_size, dtype=torch.float32) / box_size
    position = (scale * (torch.arange(start, stop, dtype=torch.float32) + 0.5) - 0.5).clamp(min=0)
    low = position.to(torch.int64).clamp(max=mask_size - 1)
    high = (low + 1).clamp(max=mask_size - 1)
    return low, high, position - low


def _bilinear(mask: Tensor, rows: tuple[Tensor, Tensor, Tensor], columns: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    (top, bottom, y), (left, right, x) = rows, columns
    x0, y0, y = 1 - x, (1 - y)[:, None], y[:, None]
    upper, lower = mask[top], mask[bottom]
    return y0 * (x0 * upper[:, left] + x * upper[:, right]) + y * (x0 * lower[:, left] + x * lower[:, right])


def masks_to_rle_reference(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """:func:`masks_to_rle` through ``F.interpolate``, a full-size mask and pycocotools, one cell at a time."""
    results = []
    for mask, (x1, y1, x2, y2) in zip(masks, _pixel_boxes(boxes.float(), masks.shape[-1]).tolist(), strict=True):
        box_size = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        padded = F.pad(mask.float(), (PADDING,) * 4)[None, None]
        enlarged = F.interpolate(padded, size=box_size, mode="bilinear", align_corners=False)[0, 0]
        full = np.zeros(size, dtype=np.uint8, order="F")
        left, top = max(x1, 0), max(y1, 0)
        right, bottom = min(x1 + box_size[1], size[1]), min(y1 + box_size[0], size[0])
        if right > left and bottom > top:
            full[top:bottom, left:right] = enlarged[top - y1 : bottom - y1, left - x1 : right - x1] > threshold
        results.append(coco_mask.encode(full))
    return results
