"""3x3 convolutions on the CPU by Winograd's algorithm (Lavin & Gray 2016, Fast Algorithms for Convolutional Neural
Networks, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from maskrcnn.ops.library import reference

PANEL = 16
"""Channels must be a multiple of this."""


def conv3x3(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """``F.conv2d(map, weight, bias, padding=1)`` for several maps, such as the levels of a pyramid, in one call.

    F(4x4, 3x3) takes 36 multiplications instead of 144, forward and in both gradients. Results differ from those of
    direct convolution by a few 1e-6 of the largest value (csrc/cpu/winograd.h).

    Args:
        maps: float32 [B, C, H_l, W_l] on the CPU; fastest in channels_last.
        weight: float32 [K, C, 3, 3], C and K multiples of 16.
        bias: float32 [K].

    Returns:
        One float32 [B, K, H_l, W_l] per map, in channels_last.

    Raises:
        ValueError: for other shapes, dtypes or devices; see :func:`can_conv3x3`.
    """
    for map_ in maps:
        if not can_conv3x3(map_, weight):
            raise ValueError(
                f"map is {map_.dtype} {tuple(map_.shape)} on {map_.device}, weight {weight.dtype} "
                f"{tuple(weight.shape)}; expected float32 [B, C, H, W] and [K, C, 3, 3] on the CPU, C and K multiples "
                f"of {PANEL}"
            )
    channels_last = [map_.permute(0, 2, 3, 1).contiguous() for map_ in maps]
    return [out.permute(0, 3, 1, 2) for out in torch.ops.maskrcnn.conv3x3(channels_last, weight, bias, False)]


def can_conv3x3(map_: Tensor, weight: Tensor) -> bool:
    """Whether :func:`conv3x3` supports these tensors: float32 on the CPU, channels in multiples of 16."""
    return (
        map_.dim() == weight.dim() == 4
        and map_.dtype == weight.dtype == torch.float32
        and map_.device.type == weight.device.type == "cpu"
        and weight.shape[2:] == (3, 3)
        and map_.shape[1] == weight.shape[1]
        and all(channels > 0 and channels % PANEL == 0 for channels in weight.shape[:2])
    )


def conv3x3_reference(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """:func:`conv3x3` by direct convolution, in any float type."""
    return [F.conv2d(map_, weight, bias, padding=1) for map_ in maps]


@reference("conv3x3")
def _(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, transposed: bool) -> list[Tensor]:
    weight = weight.transpose(0, 1).flip(2, 3) if transposed else weight
    outputs = conv3x3_reference([map_.permute(0, 3, 1, 2) for map_ in maps], weight, bias)
    # copies: autograd does not let views be changed in place that a function returns in a list
    return [out.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format) for out in outputs]


@reference("conv3x3_weight_gradient")
def _(maps: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    size = (grads[0].shape[3], maps[0].shape[3], 3, 3)
    pairs = [(map_.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2)) for map_, grad in zip(maps, grads, strict=True)]
    parts = [conv2d_weight(map_, size, grad, padding=1) for map_, grad in pairs]
    return torch.stack(parts).sum(0).permute(0, 2, 3, 1).contiguous()


@torch.library.register_fake("maskrcnn::conv3x3")
def _(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, transposed: bool) -> list[Tensor]:
    return [map_.new_empty(*map_.shape[:3], weight.shape[1 if transposed else 0]) for map_ in maps]


@torch.library.register_fake("maskrcnn::conv3x3_weight_gradient")
def _(maps: Sequence[Tensor], grads: Sequence[Tensor]) -> Tensor:
    return maps[0].new_empty(grads[0].shape[3], 3, 3, maps[0].shape[3])


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    maps, weight, _, ctx.transposed = inputs
    ctx.save_for_backward(weight, *maps)
    ctx.needs_maps = any(map_.requires_grad for map_ in maps)


def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    weight, *maps = ctx.saved_tensors
    grads = [grad.contiguous() for grad in grads]
    to_maps: list[Tensor | None] = [None] * len(maps)
    to_weight = to_bias = None
    if ctx.needs_maps:
        to_maps = torch.ops.maskrcnn.conv3x3(grads, weight, None, not ctx.transposed)
    if ctx.needs_input_grad[1]:
        ends = (grads, maps) if ctx.transposed else (maps, grads)
        to_weight = torch.ops.maskrcnn.conv3x3_weight_gradient(*ends).permute(0, 3, 1, 2)
    if ctx.needs_input_grad[2]:
        to_bias = torch.stack([grad.sum((0, 1, 2)) for grad in grads]).sum(0)
    return to_maps, to_weight, to_bias, None


torch.library.register_autograd("maskrcnn::conv3x3", _backward, setup_context=_setup_context)
