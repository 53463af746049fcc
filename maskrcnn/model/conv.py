"""3x3 convolutions of the network, with the Winograd kernel where it is faster than PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn import ops


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(inputs, outputs, 3, padding=1)`` with the same parameters, parameter names and initialization.

    In float32 on the CPU, maps that are not tiny go through :func:`maskrcnn.ops.conv3x3`, which takes a third of the
    time; everything else (GPUs, autocast, float64, channels that are not multiples of 16) goes through PyTorch.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return self.forward_maps([x])[0]

    def forward_maps(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Apply the convolution to several maps, largest first."""
        if not torch.is_autocast_enabled(maps[0].device.type) and all(
            ops.can_conv3x3(map_, self.weight) for map_ in maps
        ):
            # the weights are transformed at every call, which costs as much as about 2 C pixels
            height, width = maps[0].shape[2:]
            if 2 * height * width >= self.in_channels:
                return ops.conv3x3(maps, self.weight, self.bias)
        return [super(Conv3x3, self).forward(map_) for map_ in maps]
