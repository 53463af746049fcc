"""Feature pyramid network (Lin et al. 2017, Feature Pyramid Networks, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.conv import Conv3x3
from maskrcnn.model.group_norm import GroupNorm


class FPN(nn.Module):
    """P2..P5 from C2..C5 by 1x1 lateral convolutions, nearest upsampling and 3x3 output convolutions; P6 from P5.

    A backbone with fewer stages gives fewer levels: P2..P4 from C2..C4, and P5 from P4.

    Args:
        in_channels: channels of C2..C5.
        out_channels: channels of every output (256 in the paper).
        group_norm: GroupNorm after every convolution (He et al. 2019, Rethinking ImageNet Pre-training, section 3.1).
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, group_norm: bool = False) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.inner_blocks = nn.ModuleList(_conv(channels, out_channels, 1, group_norm) for channels in in_channels)
        self.layer_blocks = nn.ModuleList(_conv(out_channels, out_channels, 3, group_norm) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C2..C5 -> P2..P6, each [B, out_channels, H/s, W/s] with s = 4, 8, 16, 32, 64."""
        top_down = self.inner_blocks[-1](features[-1])
        outputs = [self.layer_blocks[-1](top_down)]
        for level in range(len(features) - 2, -1, -1):
            with torch.autocast(top_down.device.type, enabled=False):  # it would copy the map to float32 on GPUs
                upsampled = F.interpolate(top_down, size=features[level].shape[-2:], mode="nearest")
            conv, *norm = self.inner_blocks[level].children()
            lateral = conv(features[level])
            top_down = norm[0](lateral, upsampled) if norm else lateral + upsampled
            outputs.insert(0, self.layer_blocks[level](top_down))
        # the last level is only used by the RPN: "simply a stride two subsampling of P5" (section 4.1, footnote)
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs


def _conv(inputs: int, outputs: int, size: int, group_norm: bool) -> nn.Sequential:
    bias = not group_norm
    conv = Conv3x3(inputs, outputs, bias) if size == 3 else nn.Conv2d(inputs, outputs, size, bias=bias)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
        return nn.Sequential(conv)
    return nn.Sequential(conv, GroupNorm(outputs))
