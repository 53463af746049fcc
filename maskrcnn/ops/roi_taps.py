"""The pixels under a RoI and their weights, for the PyTorch references of RoIAlign and of the mask targets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_POINTS = 1_000_000_000
"""Sampling points of a bin along one axis."""


def roi_taps(
    box: Tensor, scale: float, bins: Sequence[int], size: Sequence[int], sampling_ratio: int, aligned: bool
) -> tuple[slice, Tensor, slice, Tensor]:
    """The pixels that a RoI reads and their weights, for the references: rows and [bins_h, rows], columns and
    [bins_w, columns]."""
    y, rows = _axis_taps(box[1], box[3], scale, bins[0], size[0], sampling_ratio, aligned)
    x, columns = _axis_taps(box[0], box[2], scale, bins[1], size[1], sampling_ratio, aligned)
    return y, rows, x, columns


def _axis_taps(
    low: Tensor, high: Tensor, scale: float, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> tuple[slice, Tensor]:
    """The pixels along one axis and their weight in each bin, [bins, pixels]: the mean of its points' bilinear
    weights. Lengths are computed in the dtype of the box, whose last bit determines the number of points."""
    start = low * scale - (0.5 if aligned else 0.0)
    length = high * scale - (0.5 if aligned else 0.0) - start
    side = (length if aligned else length.clamp(min=1)) / bins
    count = float(sampling_ratio if sampling_ratio > 0 else side.ceil())
    points = int(min(count, MOST_POINTS)) if count > 0 else 0
    index = torch.arange(*_points_on_map(float(start), float(side), points, bins, size), device=low.device)
    bin_, point = (part.to(low.dtype) for part in (index // max(points, 1), index % max(points, 1)))
    position = start + bin_ * side + (point + 0.5) * side / points
    inside = (position >= -1) & (position <= size)
    bin_, position = bin_[inside].long(), position[inside].clamp(0, size - 1)
    if not len(position):
        return slice(0, 0), low.new_zeros(bins, 0)
    pixel, next_pixel = position.floor().long(), position.ceil().long()
    begin, end = int(pixel.min()), int(next_pixel.max()) + 1
    weights, fraction = low.new_zeros(bins, end - begin), position - pixel
    weights.index_put_((bin_, pixel - begin), (1 - fraction) / points, accumulate=True)
    weights.index_put_((bin_, next_pixel - begin), fraction / points, accumulate=True)
    return slice(begin, end), weights


def _points_on_map(start: float, side: float, points: int, bins: int, size: int) -> tuple[int, int]:
    """The first and one past the last point that may lie on the map, so that a huge RoI takes no more than the map."""
    total = points * bins
    if not (points and side > 0):
        return 0, total
    step, rounding = side / points, 1e-6 * (abs(start) + side * bins + 1)
    if not math.isfinite(rounding / step):
        return 0, 0
    first, last = (-1 - rounding - start) / step - 1, (size + rounding - start) / step + 1
    return int(min(max(first, 0), total)), int(min(max(last, 0), total))
