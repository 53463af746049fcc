"""Resampling of masks from one box to another."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_masks(
    masks: Tensor, boxes: Tensor, new_boxes: Tensor, padding_mode: Literal["zeros", "border"] = "zeros"
) -> Tensor:
    """Resample masks of ``boxes`` bilinearly to masks of ``new_boxes``.

    Args:
        masks: float [N, M, M].
        boxes: float32 [N, 4], xyxy in pixels, of positive area; each mask divides its box evenly.
        new_boxes: float32 [N, 4].
        padding_mode: values outside of ``boxes``: zeros, or those at the mask's edge (``border``).

    Returns:
        float32 [N, M, M].
    """
    sides, centers = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    new_sides, new_centers = new_boxes[:, 2:] - new_boxes[:, :2], (new_boxes[:, 2:] + new_boxes[:, :2]) / 2
    transform = torch.zeros(len(masks), 2, 3, device=boxes.device)
    transform[:, 0, 0], transform[:, 1, 1] = (new_sides / sides).unbind(1)
    transform[:, :, 2] = 2 * (new_centers - centers) / sides
    grid = F.affine_grid(transform, [len(masks), 1, *masks.shape[1:]], align_corners=False)
    return F.grid_sample(masks[:, None].float(), grid, padding_mode=padding_mode, align_corners=False)[:, 0]


def align_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """Align the masks of a network that is not aligned (:attr:`maskrcnn.MaskRCNN.aligned`) with their boxes.

    It was trained with targets for which the centre of pixel i is at i, so that its masks belong to a box shifted half
    a pixel down and right, at least one pixel wide and high. They are resampled to the actual box; the strip at its
    left and top that they do not cover repeats the mask's edge.

    Args:
        masks: float [N, M, M].
        boxes: float32 [N, 4], xyxy in pixels of the network's input.

    Returns:
        float32 [N, M, M].
    """
    if not len(masks):
        return masks
    corner = boxes[:, :2] + 0.5
    shifted = torch.cat([corner, corner + (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)], dim=1)
    return resample_masks(masks, shifted, boxes, "border")
