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


def masks_to_rle(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, aligned: bool = True
) -> list[dict[str, Any]]:
    """The pixels where each mask, enlarged into its box, is above ``threshold``, as COCO RLE.

    By default coordinates are continuous, as for :func:`crop_labels` and in detectron2: pixel (x, y) has its centre at
    (x + 0.5, y + 0.5), and its value is the mask's, interpolated bilinearly between its M entries, at position
    ``(x + 0.5 - x1) / (x2 - x1) * M - 0.5``, likewise in y, with zeros around the mask. A box without area has no
    pixels.

    With ``aligned=False`` the pixels are those of torchvision's ``paste_masks_in_image``, which cuts boxes to whole
    pixels: byte for byte what it, a threshold and ``pycocotools.mask.encode`` give, but for pixels whose value is the
    threshold to the last bit.

    Each mask is enlarged inside its own box only (the part of it that lies in the picture), never to the picture's
    size.

    Args:
        masks: float [K, M, M], probabilities.
        boxes: float [K, 4], xyxy in pixels; they may reach beyond the picture.
        size: (H, W) of the picture.
        threshold: a pixel belongs to the cell above it; 0 or more.
        aligned: the convention of the boxes, see above.

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
        results += _encode(some.float().contiguous(), their_boxes.float().contiguous(), size, threshold, aligned)
    return results


def _encode(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float, aligned: bool
) -> list[dict[str, Any]]:
    runs, ends = torch.ops.maskrcnn.mask_runs(masks, boxes, *size, float(threshold), aligned)
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
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, aligned: bool = True
) -> list[dict[str, Any]]:
    """:func:`masks_to_rle` through full-size masks and pycocotools, one cell at a time.

    Aligned: in float64, as the matrix product that bilinear interpolation is; the values are rounded to float32 before
    they are compared. Not aligned: by ``F.interpolate``.
    """
    if not aligned:
        return _pasted_as_torchvision(masks, boxes, size, threshold)
    results = []
    for mask, (x1, y1, x2, y2) in zip(masks.double(), boxes.double().tolist(), strict=True):
        full = np.zeros(size, dtype=np.uint8, order="F")
        if x2 > x1 and y2 > y1:
            rows, columns = _weights(size[0], y1, y2, len(mask)), _weights(size[1], x1, x2, len(mask))
            full[:] = (rows @ mask @ columns.T).float() > threshold
        results.append(coco_mask.encode(full))
    return results


def _weights(pixels: int, low: float, high: float, mask_size: int) -> Tensor:
    """float64 [pixels, mask_size]: the share of each entry of the mask in each pixel, on one axis of the box."""
    position = (torch.arange(pixels, dtype=torch.float64) + 0.5 - low) * mask_size / (high - low) - 0.5
    return (1 - (position[:, None] - torch.arange(mask_size)).abs()).clamp(min=0)


def _pasted_as_torchvision(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float
) -> list[dict[str, Any]]:
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
def _(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, aligned: bool) -> tuple[Tensor, Tensor]:
    runs = torch.library.get_ctx().new_dynamic_size()
    return masks.new_empty(runs, dtype=torch.int64), masks.new_empty(masks.shape[0], dtype=torch.int64)


@torch.library.register_fake("maskrcnn::encode_runs")
def _(runs: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    characters = torch.library.get_ctx().new_dynamic_size()
    return runs.new_empty(characters, dtype=torch.uint8), torch.empty_like(ends)


for _device in ("cpu", "cuda"):  # pixels on an outline need float32's digits
    torch.library.register_autocast("maskrcnn::mask_runs", _device, torch.float32)
