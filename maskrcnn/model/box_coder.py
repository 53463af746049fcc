"""Boxes as offsets from reference boxes (Girshick et al. 2014, R-CNN, appendix C; weights as in Fast R-CNN's code)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""A box grows at most from 16 to 1000 pixels in one step: exp() of an untrained output must stay finite."""


@dataclass(frozen=True)
class BoxCoder:
    """Deltas (dx, dy, dw, dh): shift of the centre in units of the reference's size, and logarithm of the scale.

    ``weights`` multiply the four deltas, to bring them to a spread of about 1.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas that turn ``references`` into ``boxes``; both float [N, 4] xyxy with positive sides -> [N, 4]."""
        center, size = _center_size(boxes)
        reference_center, reference_size = _center_size(references)
        shift = (center - reference_center) / reference_size
        scale = torch.log(size / reference_size)
        return torch.cat([shift, scale], dim=-1) * shift.new_tensor(self.weights)

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """``references`` moved and scaled by ``deltas``.

        Args:
            deltas: float [..., 4].
            references: float [..., 4] xyxy, of a shape that broadcasts to that of ``deltas``.

        Returns:
            [..., 4] xyxy in float32 (or float64): bf16 has too few digits for coordinates.
        """
        deltas = deltas.to(references.dtype) / references.new_tensor(self.weights)
        reference_center, reference_size = _center_size(references)
        center = deltas[..., :2] * reference_size + reference_center
        half = 0.5 * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * reference_size
        return torch.cat([center - half, center + half], dim=-1)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] xyxy with every coordinate moved into the image of ``size`` (H, W)."""
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


def large_enough(boxes: Tensor, min_size: float) -> Tensor:
    """bool [N]: both sides of the box [N, 4] have at least ``min_size`` pixels."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(dim=1)
