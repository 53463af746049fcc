"""Group normalization (Wu & He 2018) that gives the tiles of a picture the statistics of the whole picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskrcnn import ops

GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm(32, channels)``, with ReLU in the same pass, that can use means and variances of other inputs.

    GroupNorm computes its statistics over a whole feature map (Wu & He 2018, equation 7). A tile of a picture would
    therefore be normalized differently from the same region in the whole picture.
    :meth:`maskrcnn.MaskRCNN.with_statistics` makes a network whose norms have fixed statistics.

    Args:
        channels: a multiple of 32.
        eps: added to the variances.
        relu: whether :meth:`forward` ends with a ReLU.

    Attributes:
        fixed: means and variances [2, 1, 32] that replace the input's own; None: plain GroupNorm.
        recording: whether :meth:`forward` sets ``fixed`` from its input.
    """

    def __init__(self, channels: int, eps: float = 1e-5, relu: bool = False) -> None:
        super().__init__(GROUPS, channels, eps)
        self.relu = relu
        self.fixed: Tensor | None = None
        self.recording = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> the same shape and dtype, channels_last; ``residual`` is added before the ReLU."""
        if self.recording:
            self.fixed = _of_all(ops.group_statistics(x, self.num_groups))
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self.relu, residual, self.fixed)


def _of_all(statistics: Tensor) -> Tensor:
    """Means and variances of maps of one size, [2, B, groups], to those of all maps together, [2, 1, groups]."""
    means, variances = statistics
    mean = means.mean(0, keepdim=True)
    return torch.stack([mean, (variances + (means - mean).square()).mean(0, keepdim=True)])
