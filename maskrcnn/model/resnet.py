"""ResNet backbones (He et al. 2016, Deep Residual Learning, table 1) with a choice of normalization layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn.model.conv import Conv3x3
from maskrcnn.model.group_norm import GROUPS, GroupNorm

Norm = Literal["group", "batch", "frozen_batch"]
NormLayer = Callable[..., nn.Module]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with constant statistics and affine parameters; see :func:`make_norm` for the arguments.

    For fine-tuning with batches that are too small for batch statistics. The parameter names are those of
    ``nn.BatchNorm2d``, so that its weights can be loaded.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, relu: bool = False) -> None:
        super().__init__()
        self.eps, self.relu = eps, relu
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> the same shape; ``residual`` is added before the ReLU."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        out = x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)
        return _finish(out, residual, self.relu)


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d``; see :func:`make_norm` for the arguments."""

    def __init__(self, num_features: int, eps: float = 1e-5, relu: bool = False) -> None:
        super().__init__(num_features, eps)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> the same shape; ``residual`` is added before the ReLU."""
        return _finish(super().forward(x), residual, self.relu)


def _finish(out: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    if residual is not None:
        out = out + residual
    return F.relu(out, inplace=True) if relu else out


def make_norm(norm: Norm, channels: int, eps: float = 1e-5, relu: bool = False) -> nn.Module:
    """The normalization layer called ``norm`` for ``channels`` channels; GroupNorm has 32 groups (Wu & He 2018).

    Its ``forward(x, residual=None)`` adds the residual, if there is one, and ends with a ReLU if ``relu``.
    """
    if norm == "group":
        return GroupNorm(channels, eps, relu)
    if norm == "batch":
        return BatchNorm2d(channels, eps, relu)
    if norm == "frozen_batch":
        return FrozenBatchNorm2d(channels, eps, relu)
    raise ValueError(f"norm is {norm!r}; expected group, batch or frozen_batch")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, norm: NormLayer, stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, width, stride)
        self.bn1 = norm(width, relu=True)
        self.conv2 = Conv3x3(width, width, bias=False)
        self.bn2 = norm(width, relu=True)
        self.downsample = _shortcut(inputs, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, width, H/stride, W/stride]."""
        out = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(out), x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions (He et al. 2016, figure 5 right).

    The stride is in the 3x3 convolution, or in the first 1x1 one as in the original paper and detectron2's ``R-50.pkl``
    (``stride_in_1x1``).
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, norm: NormLayer, stride_in_1x1: bool = False) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = norm(width, relu=True)
        self.conv2 = _conv3x3(width, width, second)
        self.bn2 = norm(width, relu=True)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = norm(width * self.expansion, relu=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, 4 * width, H/stride, W/stride]."""
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return self.bn3(self.conv3(out), x if self.downsample is None else self.downsample(x))


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    if stride == 1:
        return Conv3x3(inputs, outputs, bias=False)
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int, norm: NormLayer) -> nn.Sequential | None:
    """The projection shortcut, only if the shape changes (option B in He et al. 2016, section 3.3)."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


class ResNet(nn.Module):
    """ResNet-18, 34, 50 or 101 without classifier: C2 to C5 at strides 4, 8, 16 and 32, or the first ``stages``.

    Parameter names are torchvision's. Weights are initialized as in He et al. 2015 (fan out); with GroupNorm or
    BatchNorm the last scale of each residual branch is initialized to 0, so that the blocks start as identities (Goyal
    et al. 2017, section 5.1).

    Args:
        depth: 18, 34, 50 or 101.
        norm: see :func:`make_norm`.
        stride_in_1x1: see :class:`Bottleneck`.
        norm_eps: added to the variances; 0 for weights that were trained with 0, such as torchvision's COCO models.
        stages: number of stages, 1 to 4. The fourth has three quarters of the weights of a ResNet-18, and is for
            objects of several hundred pixels.
        width: channels of the first stage's 3x3 convolutions, 64 in the paper; doubled with each stage.

    Raises:
        ValueError: for another depth or number of stages, or a width that is not divisible into 32 groups.
    """

    def __init__(
        self,
        depth: int = 50,
        norm: Norm = "group",
        stride_in_1x1: bool = False,
        norm_eps: float = 1e-5,
        stages: int = 4,
        width: int = 64,
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth is {depth}; expected one of {', '.join(map(str, _BLOCKS))}")
        if not 1 <= stages <= 4:
            raise ValueError(f"stages is {stages}; expected 1 to 4")
        if width < 1 or (norm == "group" and width % GROUPS):
            raise ValueError(f"width is {width}; expected a multiple of {GROUPS}, for GroupNorm")
        block: Callable[..., BasicBlock | Bottleneck] = BasicBlock if depth < 50 else Bottleneck
        expansion = BasicBlock.expansion if depth < 50 else Bottleneck.expansion
        self.depth, self.norm, self.stages = depth, norm, stages
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        norm_layer = partial(make_norm, norm, eps=norm_eps)
        self.bn1 = norm_layer(width, relu=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(_BLOCKS[depth][:stages]):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, width * 2**stage, stride, norm_layer, stride_in_1x1))
                inputs = width * 2**stage * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.out_channels = [width * 2**stage * expansion for stage in range(stages)]
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck) and self.norm != "frozen_batch":
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> C2..C5, [B, C, H/4, W/4] to [B, C, H/32, W/32], or the first ``stages`` of them."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        features = []
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            features.append(x)
        return features
