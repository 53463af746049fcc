"""Masks of one box as masks of another."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def laid_over(masks: Tensor, boxes: Tensor, onto: Tensor, outside: Literal["zeros", "border"] = "zeros") -> Tensor:
    """Resample masks of ``boxes`` as masks of the boxes ``onto``, bilinearly.

    Args:
        masks: float [N, M, M].
        boxes: float32 [N, 4], xyxy in pixels, of positive area; each mask divides its box evenly.
        onto: float32 [N, 4].
        outside: what lies outside of ``boxes``: zeros, or the mask's values at its edge (``border``).

    Returns:
        float32 [N, M, M].
    """
    sides, centers = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    onto_sides, onto_centers = onto[:, 2:] - onto[:, :2], (onto[:, 2:] + onto[:, :2]) / 2
    transform = torch.zeros(len(masks), 2, 3, device=boxes.device)
    transform[:, [0, 1], [0, 1]] = onto_sides / sides
    transform[:, :, 2] = 2 * (onto_centers - centers) / sides
    grid = F.affine_grid(transform, [len(masks), 1, *masks.shape[1:]], align_corners=False)
    return F.grid_sample(masks[:, None].float(), grid, padding_mode=outside, align_corners=False)[:, 0]


def into_their_boxes(masks: Tensor, boxes: Tensor) -> Tensor:
    """The masks of a network that is not aligned (:attr:`maskrcnn.MaskRCNN.aligned`), moved to where they belong.

    It was trained with targets for which the centre of pixel i is at i. They show what lies half a pixel down and right
    of the box, at least one pixel wide and high: that part is resampled over the box; the strip at its left and top
    that the network did not see repeats the mask's edge.

    Args:
        masks: float [N, M, M].
        boxes: float32 [N, 4], xyxy in pixels of the network's input.

    Returns:
        float32 [N, M, M].
    """
    if not len(masks):
        return masks
    corner = boxes[:, :2] + 0.5
    seen = torch.cat([corner, corner + (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)], dim=1)
    return laid_over(masks, seen, boxes, "border")
