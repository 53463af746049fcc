"""From the network's small masks to COCO run lengths in the picture's size, without a mask of that size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn.ops import library  # noqa: F401 (registers the kernels)
from maskrcnn.ops.checks import check_boxes, check_device

PADDING = 1
"""Zeros around each mask before it is enlarged, so that its outline can end inside the box."""

CHUNK = 1 << 14
"""Masks that are encoded together: those of a slide are kept in half precision, and take twice that in single."""


def masks_to_rle(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> list[dict[str, Any]]:
    """The pixels where each mask, enlarged into its box, is above ``threshold``, as COCO RLE.

    What torchvision's ``paste_masks_in_image`` > threshold and ``pycocotools.mask.encode`` give, byte for byte but for
    pixels whose value is the threshold to the last bit. Each mask is enlarged inside its own box only (the part of it
    that lies in the picture), never to the picture's size.

    Args:
        masks: float [K, M, M], probabilities.
        boxes: float [K, 4], xyxy in pixels; they may reach beyond the picture.
        size: (H, W) of the picture.
        threshold: a pixel belongs to the cell above it; 0 or more.

    Returns:
        For each mask ``{"size": [H, W], "counts": bytes}``.

    Raises:
        ValueError: for a wrong shape, dtype or device, or a threshold below 0.
        RuntimeError: for a box that is not finite.
    """
    check_boxes("boxes", boxes)
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2] or masks.shape[0] != boxes.shape[0]:
        raise ValueError(f"masks has shape {tuple(masks.shape)}; expected [{boxes.shape[0]}, M, M]")
    if not masks.is_floating_point():
        raise ValueError(f"masks has dtype {masks.dtype}; expected a floating point type")
    check_device("masks", masks, "boxes", boxes)
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; expected 0 or more")
    if not len(masks):
        return []
    results: list[dict[str, Any]] = []
    for some, their_boxes in zip(masks.detach().split(CHUNK), boxes.detach().split(CHUNK), strict=True):
        results += _encode(some.float().contiguous(), their_boxes.float().contiguous(), size, threshold)
    return results


def _encode(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[dict[str, Any]]:
    runs, ends = torch.ops.maskrcnn.mask_runs(masks, boxes, *size, float(threshold))
    texts, ends = torch.ops.maskrcnn.encode_runs(runs.cpu(), ends.cpu())  # the texts are needed on the host
    data = texts.numpy().tobytes()
    stops = ends.tolist()
    return [{"size": list(size), "counts": data[start:stop]} for start, stop in zip([0, *stops], stops, strict=False)]


def _pixel_boxes(boxes: Tensor, mask_size: int) -> Tensor:
    """int64 [K, 4]: the boxes grown about their centres as the masks are by their padding, cut to whole pixels."""
    scale = float(mask_size + 2 * PADDING) / mask_size
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat([center - half, center + half], dim=1).to(torch.int64)


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
        right, bottom = min(x2 + 1, size[1]), min(y2 + 1, size[0])
        if right > left and bottom > top:
            full[top:bottom, left:right] = enlarged[top - y1 : bottom - y1, left - x1 : right - x1] > threshold
        results.append(coco_mask.encode(full))
    return results


@torch.library.register_fake("maskrcnn::mask_runs")
def _(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> tuple[Tensor, Tensor]:
    runs = torch.library.get_ctx().new_dynamic_size()
    return masks.new_empty(runs, dtype=torch.int64), masks.new_empty(masks.shape[0], dtype=torch.int64)


@torch.library.register_fake("maskrcnn::encode_runs")
def _(runs: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    characters = torch.library.get_ctx().new_dynamic_size()
    return runs.new_empty(characters, dtype=torch.uint8), torch.empty_like(ends)


for _device in ("cpu", "cuda"):  # pixels on an outline need float32's digits
    torch.library.register_autocast("maskrcnn::mask_runs", _device, torch.float32)
