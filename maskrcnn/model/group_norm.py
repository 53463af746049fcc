"""Group normalisation (Wu & He 2018) of a picture that is seen in parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm(32, channels)``, whose means and variances may be those of other maps than the one at hand.

    They are taken over a whole map (Wu & He 2018, equation 7), so that a part of a picture would be normalised, and
    judged, otherwise than the same place in the whole. :meth:`maskrcnn.MaskRCNN.with_statistics_of` makes a network
    whose norms hold them.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(GROUPS, channels, eps)
        self.held: tuple[Tensor, Tensor] | None = None
        self.gathers = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        if self.gathers:
            self.held = self._scale_and_shift(x)
        if self.held is None:
            return super().forward(x)
        scale, shift = self.held
        widens = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")  # as autocast does to group_norm there
        return torch.addcmul(shift, x.float(), scale).to(torch.float32 if widens else x.dtype)

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, C, 1, 1] each: what normalises the maps ``x`` as if they were one."""
        variances, means = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        means, variances = means.view(self.num_groups, -1), variances.view(self.num_groups, -1)
        mean = means.mean(1, keepdim=True)
        variance = (variances + (means - mean).square()).mean(1, keepdim=True)
        scale = self.weight.view(self.num_groups, -1) * (variance + self.eps).rsqrt()
        shift = self.bias.view(self.num_groups, -1) - mean * scale
        return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
