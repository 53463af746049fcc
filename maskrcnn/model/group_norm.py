"""Group normalization (Wu & He 2018) that gives the tiles of a picture the statistics of the whole picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm(32, channels)`` that can use means and variances of other inputs.

    GroupNorm computes its statistics over a whole feature map (Wu & He 2018, equation 7). A tile of a picture would
    therefore be normalized differently from the same region in the whole picture.
    :meth:`maskrcnn.MaskRCNN.with_statistics_of` makes a network whose norms have fixed statistics.

    Attributes:
        fixed: scale and shift [1, C, 1, 1] that replace the input's own statistics; None: plain GroupNorm.
        recording: whether :meth:`forward` sets ``fixed`` from its input.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(GROUPS, channels, eps)
        self.fixed: tuple[Tensor, Tensor] | None = None
        self.recording = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        if self.recording:
            self.fixed = self._scale_and_shift(x)
        if self.fixed is None:
            return super().forward(x)
        scale, shift = self.fixed
        to_float32 = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")  # as autocast does for group_norm
        return torch.addcmul(shift, x.float(), scale).to(torch.float32 if to_float32 else x.dtype)

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, [1, C, 1, 1] each, that normalize all maps of the batch ``x`` together."""
        variances, means = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        means, variances = means.view(self.num_groups, -1), variances.view(self.num_groups, -1)
        mean = means.mean(1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(1, keepdim=True)
        scale = self.weight.view(self.num_groups, -1) * (variance + self.eps).rsqrt()
        shift = self.bias.view(self.num_groups, -1) - mean * scale
        return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
