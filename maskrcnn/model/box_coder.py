"""Encoding of boxes as deltas relative to reference boxes (Girshick et al. 2014, R-CNN, appendix C)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Limit of the scaling of a box, from 16 to 1000 pixels, so that exp() of an untrained output stays finite."""


@dataclass(frozen=True)
class BoxCoder:
    """Converts between boxes and deltas (dx, dy, dw, dh), relative to reference boxes.

    dx and dy are the shift of the centre in units of the reference's size, dw and dh the logarithm of the scale.
    ``shift_weight`` multiplies the first two, ``scale_weight`` the last two, so that their standard deviation is about
    1: 10 and 5 in the box branch, 1 and 1 in the RPN, as in the code of Fast and Faster R-CNN.
    """

    shift_weight: float = 1.0
    scale_weight: float = 1.0

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas [N, 4] that transform ``references`` into ``boxes``; both float [N, 4] xyxy with positive sides."""
        center, size = _center_size(boxes)
        reference_center, reference_size = _center_size(references)
        shift = self.shift_weight * (center - reference_center) / reference_size
        scale = self.scale_weight * torch.log(size / reference_size)
        return torch.cat([shift, scale], dim=-1)

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes that result from applying ``deltas`` to ``references``.

        Args:
            deltas: float [..., 4].
            references: float [..., 4] xyxy, of a shape that broadcasts to that of ``deltas``.

        Returns:
            [..., 4] xyxy in float32 (or float64): bf16 has too few digits for coordinates.
        """
        deltas = deltas.to(references.dtype)
        reference_center, reference_size = _center_size(references)
        center = deltas[..., :2] / self.shift_weight * reference_size + reference_center
        log_scale = (deltas[..., 2:] / self.scale_weight).clamp(max=MAX_LOG_SCALE)
        half = 0.5 * torch.exp(log_scale) * reference_size
        return torch.cat([center - half, center + half], dim=-1)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
