"""Encoding of the mask head's small masks as COCO RLE at image size, without a mask of that size in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn.ops.checks import check_boxes, check_device, refuse_any
from maskrcnn.ops.library import reference

PADDING = 1
"""Width of the zeros around each mask before it is enlarged, so that its outline can end inside the box."""

CHUNK = 1 << 14
"""Number of masks per kernel call: a slide's masks are kept in half precision and take twice the memory in float32."""


def masks_to_rle(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, aligned: bool = True
) -> list[dict[str, Any]]:
    """Resize each predicted mask to its box, threshold it, and encode the pixels of the image as COCO RLE.

    By default coordinates are continuous, as in :func:`crop_labels` and detectron2: the centre of pixel (x, y) is at
    (x + 0.5, y + 0.5). Its value is interpolated bilinearly from the mask's M x M entries, with zeros around them, at
    position ``(x + 0.5 - x1) / (x2 - x1) * M - 0.5``, likewise in y. A box without area has no pixels.

    With ``aligned=False`` the result is byte for byte that of torchvision's ``paste_masks_in_image``, which truncates
    boxes to whole pixels, a threshold and ``pycocotools.mask.encode``, except for pixels whose value equals the
    threshold to the last bit.

    Each mask is resized only within the part of its box that is inside the image, never to the size of the image.

    Args:
        masks: float [K, M, M], probabilities.
        boxes: float [K, 4], xyxy in pixels; they may extend beyond the image.
        size: (H, W) of the image.
        threshold: pixels with a value above it belong to the cell; 0 or more.
        aligned: the convention for coordinates, see above.

    Returns:
        One dict ``{"size": [H, W], "counts": bytes}`` per mask.

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
    for chunk, chunk_boxes in zip(masks.detach().split(CHUNK), boxes.detach().split(CHUNK), strict=True):
        results += _encode(chunk.float().contiguous(), chunk_boxes.float().contiguous(), size, threshold, aligned)
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
    """Boxes enlarged about their centres in proportion to the padding of the masks, truncated to int64 [K, 4]."""
    scale = float(mask_size + 2 * PADDING) / mask_size
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    center = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat([center - half, center + half], dim=1).to(torch.int64)


def masks_to_rle_reference(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, aligned: bool = True
) -> list[dict[str, Any]]:
    """:func:`masks_to_rle` with full-size masks and pycocotools, one cell at a time.

    Aligned: bilinear interpolation as a matrix product in float64; values are rounded to float32 before they are
    compared. Not aligned: ``F.interpolate``.
    """
    if not aligned:
        return _paste_like_torchvision(masks, boxes, size, threshold)
    results = []
    for mask, (x1, y1, x2, y2) in zip(masks.double(), boxes.double().tolist(), strict=True):
        full = np.zeros(size, dtype=np.uint8, order="F")
        if x2 > x1 and y2 > y1:
            rows = _aligned_weights(range(size[0]), y1, y2, len(mask))
            columns = _aligned_weights(range(size[1]), x1, x2, len(mask))
            full[:] = (rows @ mask @ columns.T).float() > threshold
        results.append(coco_mask.encode(full))
    return results


def _aligned_weights(pixels: range, low: float, high: float, mask_size: int) -> Tensor:
    """Weight of each mask entry in each pixel along one axis of the box, float64 [pixels, mask_size]."""
    pixel = torch.arange(pixels.start, pixels.stop, dtype=torch.float64)
    position = (pixel + 0.5 - low) * mask_size / (high - low) - 0.5
    return (1 - (position[:, None] - torch.arange(mask_size)).abs()).clamp(min=0)


def _paste_like_torchvision(
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


def _axis_weights(low: float, high: float, mask_size: int, size: int, aligned: bool) -> tuple[int, Tensor]:
    """The first pixel of the picture that a box reaches along one axis, and :func:`_aligned_weights` from it on, or
    those of ``F.interpolate`` from the box in whole pixels."""
    if aligned:
        reach = (high - low) / (2 * mask_size) + 1
        pixels = range(int(min(max(low - reach, 0), size)), int(min(max(high + reach + 1, 0), size)))
        return pixels.start, _aligned_weights(pixels if high > low else range(0), low, high, mask_size)
    (begin, last), entries = (
        _pixel_boxes(torch.tensor([[low, low, high, high]]), mask_size)[0, 1:3].tolist(),
        mask_size + 2 * PADDING,
    )
    pixels = range(min(max(begin, 0), size), min(max(last + 1, 0), size)) if last >= begin else range(0)
    per_pixel = torch.tensor(entries / max(last - begin + 1, 1)).double()  # rounded to float32, as there
    pixel = torch.arange(pixels.start, pixels.stop, dtype=torch.float64)
    position = ((pixel - begin + 0.5) * per_pixel - 0.5).float().clamp(0, entries - 1).double()
    weights = (1 - (position[:, None] - torch.arange(entries)).abs()).clamp(min=0)
    return pixels.start, weights[:, PADDING:-PADDING]


@reference("mask_runs")
def _(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, aligned: bool) -> tuple[Tensor, Tensor]:
    refuse_any(~boxes.isfinite(), "boxes: a coordinate of box {} is not finite")
    runs, ends = [torch.empty(0, dtype=torch.int64)], []
    for mask, (x1, y1, x2, y2) in zip(masks.cpu().double(), boxes.tolist(), strict=True):
        left, columns = _axis_weights(x1, x2, len(mask), width, aligned)
        top, rows = _axis_weights(y1, y2, len(mask), height, aligned)
        inside = (columns @ mask.T @ rows.T).float() > threshold  # [x, y]: pixels count down the columns
        column, row = inside.nonzero(as_tuple=True)
        pixel = (left + column) * height + top + row
        follows = pixel[1:] == pixel[:-1] + 1
        edge = torch.ones(min(1, len(pixel)), dtype=torch.bool)
        starts, stops = pixel[torch.cat([edge, ~follows])], pixel[torch.cat([~follows, edge])] + 1
        edges = [torch.zeros(1, dtype=torch.int64), torch.stack([starts, stops], dim=1).flatten()]
        if not len(stops) or stops[-1] < height * width:
            edges.append(torch.tensor([height * width]))
        runs.append(torch.cat(edges).diff())
        ends.append(len(runs[-1]))
    return torch.cat(runs).to(masks.device), torch.tensor(ends, dtype=torch.int64).cumsum(0).to(masks.device)


@reference("encode_runs")
def _(runs: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    numbers, stops, text, text_stops, start = runs.tolist(), ends.tolist(), bytearray(), [], 0
    for stop in stops:
        if not start <= stop <= len(numbers):
            raise RuntimeError(f"ends: {stop} after {start} of {len(numbers)} runs")
        for index in range(start, stop):
            value = numbers[index] - (numbers[index - 2] if index - start > 2 else 0)
            more = True
            while more:
                bits = value & 0x1F
                value >>= 5
                more = value != (-1 if bits & 0x10 else 0)
                text.append((bits | (0x20 if more else 0)) + 48)
        start = stop
        text_stops.append(len(text))
    return torch.frombuffer(text or bytearray(1), dtype=torch.uint8)[: len(text)].clone(), ends.new_tensor(text_stops)


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
