"""Group normalization (Wu & He 2018, Group Normalization, section 3.1) of channels-last maps, with ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.checks import at_least_float32, check_device, check_vector
from maskrcnn.ops.library import reference


def group_norm(
    input: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    relu: bool = False,
    residual: Tensor | None = None,
    statistics: Tensor | None = None,
) -> Tensor:
    """``F.group_norm(input, groups, weight, bias, eps)``, plus ``residual``, then ReLU, in one pass over the maps.

    Differentiable in all tensors but ``statistics``. The same on every run and for any number of threads.

    Args:
        input: float [B, C, H, W]; another layout than channels_last is converted.
        groups: number of groups, a divisor of C.
        weight, bias: [C].
        eps: added to the variances.
        relu: whether negative results become 0.
        residual: [B, C, H, W] in the dtype of ``input``, added before the ReLU.
        statistics: [2, B, groups] or [2, 1, groups], the means and variances to use, such as those of
            :func:`group_statistics`; default: those of ``input`` itself.

    Returns:
        [B, C, H, W] in the dtype of ``input``, channels_last. Statistics are at least float32.

    Raises:
        ValueError: for a wrong shape, dtype or device.
    """
    _check(input, groups)
    for name, vector in (("weight", weight), ("bias", bias)):
        check_vector(name, vector, input.shape[1])
        check_device(name, vector, "input", input)
    if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
        raise ValueError(
            f"residual is {residual.dtype} {tuple(residual.shape)}; expected {input.dtype} {tuple(input.shape)}"
        )
    kind = _statistics_dtype(input)
    if statistics is not None:
        if statistics.dim() != 3 or statistics.shape[1] not in (1, len(input)) or statistics.shape[::2] != (2, groups):
            raise ValueError(
                f"statistics has shape {tuple(statistics.shape)}; expected [2, {len(input)} or 1, {groups}]"
            )
        statistics = statistics.detach().to(kind).expand(2, len(input), groups).contiguous()
    out, _ = torch.ops.maskrcnn.group_norm(
        _channels_last(input),
        weight.to(kind).contiguous(),
        bias.to(kind).contiguous(),
        statistics,
        None if residual is None else _channels_last(residual),
        groups,
        eps,
        relu,
    )
    return out.permute(0, 3, 1, 2)


def group_statistics(input: Tensor, groups: int) -> Tensor:
    """Means and variances over the groups of each map, at least float32 [2, B, groups], without a gradient.

    Args:
        input, groups: see :func:`group_norm`.
    """
    _check(input, groups)
    weight = torch.ones(input.shape[1], dtype=_statistics_dtype(input), device=input.device)
    maps = _channels_last(input.detach())
    return torch.ops.maskrcnn.group_norm(maps, weight, torch.zeros_like(weight), None, None, groups, 1.0, False)[1]


def group_norm_reference(
    input: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    relu: bool = False,
    residual: Tensor | None = None,
    statistics: Tensor | None = None,
) -> Tensor:
    """:func:`group_norm` by its definition (Wu & He 2018, equations 1, 2 and 6), in any float type."""
    grouped = input.unflatten(1, (groups, -1)).flatten(2)
    if statistics is None:
        mean = grouped.mean(2, keepdim=True)
        variance = (grouped - mean).square().mean(2, keepdim=True)
    else:
        mean, variance = statistics.to(input.dtype).unsqueeze(-1)
    out = ((grouped - mean) / (variance + eps).sqrt()).reshape(input.shape)
    out = out * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    if residual is not None:
        out = out + residual
    return F.relu(out) if relu else out


@reference("group_norm")
def _(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    x, added = (None if t is None else t.permute(0, 3, 1, 2).to(weight.dtype) for t in (maps, residual))
    assert x is not None
    if statistics is None:
        variance, mean = torch.var_mean(x.unflatten(1, (groups, -1)).flatten(2), 2, correction=0)
        statistics = torch.stack([mean, variance])
    out = group_norm_reference(x, groups, weight, bias, eps, relu, added, statistics)
    return out.permute(0, 2, 3, 1).to(maps.dtype).contiguous(), statistics.clone()


@reference("group_norm_backward")
def _(
    grad: Tensor,
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    eps: float,
    relu: bool,
    given: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = statistics.shape[2]
    by_group = (len(maps), maps.shape[1] * maps.shape[2], groups, maps.shape[3] // groups)
    mean, variance = statistics[:, :, None, :, None]
    rate = (variance + eps).rsqrt()
    z = (maps.to(weight.dtype).reshape(by_group) - mean) * rate
    g, scale = grad.to(weight.dtype).reshape(by_group), weight.reshape(by_group[2:])
    if relu:
        g = g * ~(z * scale + bias.reshape(by_group[2:]) <= 0)  # where the result is NaN, the gradient stays
    to_maps = g * scale
    if not given:
        to_maps = to_maps - to_maps.mean((1, 3), keepdim=True) - z * (to_maps * z).mean((1, 3), keepdim=True)
    return (rate * to_maps).reshape(maps.shape).to(maps.dtype), (g * z).sum((0, 1)).flatten(), g.sum((0, 1)).flatten()


def _check(input: Tensor, groups: int) -> None:
    if input.dim() != 4 or not input.is_floating_point():
        raise ValueError(f"input is {input.dtype} {tuple(input.shape)}; expected floating point [B, C, H, W]")
    if groups < 1 or input.shape[1] == 0 or input.shape[1] % groups:
        raise ValueError(f"groups is {groups}; expected a divisor of {input.shape[1]}, the channels of input")


def _statistics_dtype(input: Tensor) -> torch.dtype:
    return at_least_float32(input.new_empty(0)).dtype


def _channels_last(input: Tensor) -> Tensor:
    return input.permute(0, 2, 3, 1).contiguous()


@torch.library.register_fake("maskrcnn::group_norm")
def _(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    return maps.new_empty(maps.shape), weight.new_empty(2, maps.shape[0], groups)


@torch.library.register_fake("maskrcnn::group_norm_backward")
def _(
    grad: Tensor,
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    eps: float,
    relu: bool,
    given: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return maps.new_empty(maps.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    maps, weight, bias, statistics, residual, _, ctx.eps, ctx.relu = inputs
    out, own_statistics = output
    ctx.given = statistics is not None
    # Where the ReLU was 0 is computed again from the input, unless a residual, which is not kept, was added.
    ctx.save_for_backward(maps, weight, bias, own_statistics, out if ctx.relu and residual is not None else None)
    ctx.mark_non_differentiable(own_statistics)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    maps, weight, bias, statistics, out = ctx.saved_tensors
    if grad is None:
        return (None,) * 8
    relu = ctx.relu and out is None
    if out is not None:
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
    to_maps, to_weight, to_bias = torch.ops.maskrcnn.group_norm_backward(
        grad.contiguous(), maps, weight, bias, statistics, ctx.eps, relu, ctx.given
    )
    to_residual = grad if ctx.needs_input_grad[4] else None
    return to_maps, to_weight, to_bias, None, to_residual, None, None, None


torch.library.register_autograd("maskrcnn::group_norm", _backward, setup_context=_setup_context)
