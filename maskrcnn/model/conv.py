"""3x3 convolutions of the network: by our kernel where it is the faster one, else by PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn import ops


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(inputs, outputs, 3, padding=1)``, with its parameters, names and start.

    On the CPU in float32, maps that are not tiny go through :func:`maskrcnn.ops.conv3x3`, which needs a third of the
    time; everything else (GPUs, autocast, float64, odd numbers of channels) is PyTorch's.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        return self.over([x])[0]

    def over(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The same of each of several maps, largest first."""
        if not torch.is_autocast_enabled(maps[0].device.type) and all(
            ops.can_conv3x3(map_, self.weight) for map_ in maps
        ):
            # the weights are transformed at every call, which costs as much as some 2 C pixels do
            height, width = maps[0].shape[2:]
            if 2 * height * width >= self.in_channels:
                return ops.conv3x3(maps, self.weight, self.bias)
        return [super(Conv3x3, self).forward(map_) for map_ in maps]
