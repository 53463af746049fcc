"""Anchors on the levels of a feature pyramid (Ren et al. 2015, Faster R-CNN, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Generates boxes of given sizes and aspect ratios at every position of every feature map.

    Args:
        sizes: anchor sizes of each level: the side in pixels of the square with the anchor's area.
        ratios: height / width, the same on every level.
        rounded: round half widths and half heights to whole pixels, as torchvision does. Off by default: it turns an
            anchor of 4 pixels and ratio 0.5 from 5.7 x 2.8 into 6 x 2.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], rounded: bool = False) -> None:
        if not sizes or any(len(level) == 0 or min(level) <= 0 for level in sizes):
            raise ValueError(f"sizes is {sizes}; expected at least one size above 0 for each level")
        if not ratios or min(ratios) <= 0:
            raise ValueError(f"ratios is {ratios}; expected ratios above 0")
        super().__init__()
        self._levels = len(sizes)
        for level, level_sizes in enumerate(sizes):  # on the network's device, so that no call copies them there
            self.register_buffer(f"cell{level}", cell_anchors(level_sizes, ratios, rounded), persistent=False)
        self._cache: dict[tuple[object, ...], Tensor] = {}

    @property
    def cells(self) -> list[Tensor]:
        """The anchors of one position, centred at the origin, for every level: float32 [k, 4]."""
        return [self.get_buffer(f"cell{level}").float() for level in range(self._levels)]

    @property
    def per_position(self) -> list[int]:
        """Number of anchors per position, for every level."""
        return [len(cell) for cell in self.cells]

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """All anchors of an image.

        Args:
            features: the feature maps [B, C, H_l, W_l] of the levels; only their sizes are used.
            image_size: (H, W) of the padded images in pixels; the stride of a level is (H // H_l, W // W_l).

        Returns:
            float32 [A, 4], xyxy; ordered by level, row, column, size, ratio. Position (y, x) of a map is at
            (y, x) * stride in the image. The tensor is cached: do not modify it.
        """
        if len(features) != self._levels:
            raise ValueError(f"features: {len(features)} levels, expected {self._levels}")
        shapes = tuple((f.shape[-2], f.shape[-1]) for f in features)
        if torch.compiler.is_compiling():
            return self._all_anchors(shapes, image_size)
        key = (shapes, image_size, features[0].device)
        anchors = self._cache.get(key)
        if anchors is None:
            anchors = self._all_anchors(shapes, image_size)
            if len(self._cache) >= 16:  # the anchors of each image size can take megabytes
                self._cache.clear()
            self._cache[key] = anchors
        return anchors

    def _all_anchors(self, shapes: Sequence[tuple[int, int]], image_size: tuple[int, int]) -> Tensor:
        return torch.cat([_grid(cell, shape, image_size) for cell, shape in zip(self.cells, shapes, strict=True)])


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = False) -> Tensor:
    """Anchors centred at the origin, float32 [len(sizes) * len(ratios), 4], ordered by size, then ratio."""
    ratio = torch.tensor(ratios, dtype=torch.float32)
    size = torch.tensor(sizes, dtype=torch.float32)
    heights = (size[:, None] * ratio.sqrt()).reshape(-1)
    widths = (size[:, None] * (1 / ratio.sqrt())).reshape(-1)
    anchors = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
    return anchors.round() if rounded else anchors


def _grid(cell: Tensor, shape: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    (rows, columns), (height, width) = shape, image_size
    y = torch.arange(rows, dtype=torch.float32, device=cell.device) * (height // rows)
    x = torch.arange(columns, dtype=torch.float32, device=cell.device) * (width // columns)
    shifts = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).repeat(1, 1, 2)
    return (shifts.reshape(-1, 1, 4) + cell).reshape(-1, 4)
