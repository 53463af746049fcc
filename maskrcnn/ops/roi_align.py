"""RoIAlign (He et al. 2017, Mask R-CNN, section 3), on one feature map or on the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.ops.checks import at_least_float32, check_boxes, check_device, check_range, refuse_any
from maskrcnn.ops.library import reference
from maskrcnn.ops.roi_taps import roi_taps
from maskrcnn.options import Range

SCALE = Range(0, 1_000_000, open_low=True)
"""Feature pixels per image pixel."""


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pool each RoI to a fixed size by averaging bilinear samples, with the contract of ``torchvision.ops.roi_align``.

    A box of 14 pixels at ``spatial_scale`` 0.25 covers 3.5 pixels of the feature map; with ``output_size`` 7 each bin
    is 0.5 wide. Its samples are the cell centres of a grid of ``sampling_ratio`` points per side. Differentiable in
    ``input``; deterministic on the CPU, and on a GPU with ``torch.use_deterministic_algorithms``.

    Args:
        input: float [B, C, H, W]; fastest in channels_last.
        boxes: float [K, 5] (image index, xyxy in pixels), or a list of float [L, 4], one per image.
        output_size: bins along height and width.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: points along each side of a bin; 0 or less: ceil(RoI side / output side).
        aligned: shift by half a pixel, so that the centre of pixel i is at i + 0.5 (detectron2's correction).

    Returns:
        [K, C, height, width] in the dtype of ``input``, channels_last if ``input`` is. Sums are in float32 (float64 for
        float64).

    Raises:
        ValueError: for a wrong shape, dtype or device, or a scale that is not finite and above 0.
        RuntimeError: for a box that is not finite or has no image in the batch (on the CPU; on a GPU its bins are 0).
    """
    if input.dim() != 4 or not input.is_floating_point():
        raise ValueError(f"input is {input.dtype} {tuple(input.shape)}; expected floating point [B, C, H, W]")
    check_range("spatial_scale", spatial_scale, SCALE)
    rois = _as_rois(boxes, input)
    level = torch.zeros(rois.shape[0], dtype=torch.int64, device=input.device)
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(size) != 2:
        raise ValueError(f"output_size is {output_size}; expected one number or two")
    return _pyramid_align([input], rois, level, [spatial_scale], size, sampling_ratio, aligned)


def multilevel_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int,
    scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: int = 224,
    canonical_level: int = 4,
    min_level: int = 2,
) -> Tensor:
    """:func:`roi_align` of each RoI on its own level of a feature pyramid, all levels in one call.

    Args:
        features: float [B, C, H_l, W_l], from the finest level on.
        rois: float [K, 5] (image index, xyxy in pixels).
        output_size: bins per side.
        scales: feature pixels per image pixel of each level.
        sampling_ratio, aligned: see :func:`roi_align`.
        canonical_size, canonical_level: a RoI of ``canonical_size`` pixels a side belongs to ``canonical_level``.
        min_level: the level of ``features[0]``.

    Returns:
        [K, C, output_size, output_size], ordered as ``rois``.

    Raises:
        ValueError, RuntimeError: see :func:`roi_align`.
    """
    if len(features) == 0 or len(features) != len(scales):
        raise ValueError(f"scales has {len(scales)} entries for {len(features)} features")
    for scale in scales:
        check_range("scales", scale, SCALE)
    check_boxes("rois", rois, 5)
    level = roi_levels(rois, len(features), canonical_size, canonical_level, min_level)
    size = (output_size, output_size)
    return _pyramid_align(list(features), rois, level, list(scales), size, sampling_ratio, aligned)


def roi_levels(
    rois: Tensor, levels: int, canonical_size: int = 224, canonical_level: int = 4, min_level: int = 2
) -> Tensor:
    """Index of each RoI's pyramid level, int64 [K] in 0..levels-1 (Lin et al. 2017, FPN, equation 1):

    k = floor(canonical_level + log2(sqrt(w h) / canonical_size)), counted from ``min_level`` and kept in range. 1e-6 is
    added before rounding down, as torchvision does, so that a RoI of exactly the canonical size is safe.
    """
    rois = at_least_float32(rois)
    side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
    level = torch.floor(canonical_level + torch.log2(side / canonical_size) + 1e-6)
    return (level.clamp(min_level, min_level + levels - 1) - min_level).to(torch.int64)


def roi_align_reference(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """:func:`roi_align` by its definition, in pure PyTorch, one RoI at a time and in any float type."""
    rois = _as_rois(boxes, input)
    bins = (output_size, output_size) if isinstance(output_size, int) else output_size
    results = []
    for roi in rois:
        y, rows, x, columns = roi_taps(roi[1:], spatial_scale, bins, input.shape[2:], sampling_ratio, aligned)
        values = input[int(roi[0]), :, y, x]
        results.append(torch.einsum("yh,chw,xw->cyx", rows.to(input.dtype), values, columns.to(input.dtype)))
    return torch.stack(results) if results else input.new_zeros(0, input.shape[1], *bins)


def _as_rois(boxes: Tensor | Sequence[Tensor], input: Tensor) -> Tensor:
    if isinstance(boxes, Tensor):
        check_boxes("boxes", boxes, 5)
        rois = boxes
    else:
        for image_boxes in boxes:
            check_boxes("boxes", image_boxes)
        parts = [
            F.pad(at_least_float32(image_boxes), (1, 0), value=float(image)) for image, image_boxes in enumerate(boxes)
        ]
        rois = torch.cat(parts) if parts else input.new_zeros(0, 5)
    check_device("boxes", rois, "input", input)
    return rois


def _pyramid_align(
    features: list[Tensor],
    rois: Tensor,
    level: Tensor,
    scales: list[float],
    size: tuple[int, ...],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    channels_last = features[0].is_contiguous(memory_format=torch.channels_last) and not features[0].is_contiguous()
    maps = [f.permute(0, 2, 3, 1).contiguous() for f in features]
    # coordinates need at least float32, whatever the dtype of the maps
    rois = rois.detach().to(torch.float64 if maps[0].dtype == torch.float64 else torch.float32).contiguous()
    out = torch.ops.maskrcnn.roi_align(maps, rois, level, scales, size[0], size[1], max(0, sampling_ratio), aligned)
    out = out.permute(0, 3, 1, 2)
    return out if channels_last else out.contiguous()


@reference("roi_align")
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor,
    scales: Sequence[float],
    size_h: int,
    size_w: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    out = features[0].new_empty(len(rois), size_h, size_w, features[0].shape[3])
    sizes = [map_.shape[1:3] for map_ in features]
    of_image, batch = rois[:, 0], len(features[0])
    refuse_any(
        (of_image < 0) | (of_image >= batch), f"rois: roi {{}} is of image {{:.0f}}, the batch has {batch}", of_image
    )
    for k, own, image, y, rows, x, columns in _each(
        rois, level, scales, (size_h, size_w), sizes, sampling_ratio, aligned
    ):
        out[k] = torch.einsum("yh,hwc,xw->yxc", rows, features[own][image, y, x].to(rois.dtype), columns)
    return out


@reference("roi_align_backward")
def _(
    grad: Tensor,
    rois: Tensor,
    level: Tensor,
    scales: Sequence[float],
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    deterministic: bool,
) -> list[Tensor]:
    sizes, bins = list(zip(heights, widths, strict=True)), grad.shape[1:3]
    sums = [rois.new_zeros(batch, *size, grad.shape[3]) for size in sizes]
    for k, own, image, y, rows, x, columns in _each(rois, level, scales, bins, sizes, sampling_ratio, aligned):
        sums[own][image, y, x] += torch.einsum("yh,yxc,xw->hwc", rows, grad[k].to(rois.dtype), columns)
    return [total.to(grad.dtype) for total in sums]


def _each(
    rois: Tensor,
    level: Tensor,
    scales: Sequence[float],
    bins: Sequence[int],
    sizes: Sequence[Sequence[int]],
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[int, int, int, slice, Tensor, slice, Tensor]]:
    """Number, level and image of each RoI, and what :func:`roi_taps` says."""
    refuse_any(~rois.isfinite(), "rois: roi {} has a coordinate that is not finite")
    images, coordinates = rois[:, 0].long().tolist(), rois[:, 1:].cpu()
    for k, (own, image) in enumerate(zip(level.tolist(), images, strict=True)):
        y, rows, x, columns = roi_taps(coordinates[k], scales[own], bins, sizes[own], sampling_ratio, aligned)
        yield k, own, image, y, rows.to(rois.device), x, columns.to(rois.device)


@torch.library.register_fake("maskrcnn::roi_align")
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor,
    scales: Sequence[float],
    size_h: int,
    size_w: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return features[0].new_empty(rois.shape[0], size_h, size_w, features[0].shape[3])


@torch.library.register_fake("maskrcnn::roi_align_backward")
def _(
    grad: Tensor,
    rois: Tensor,
    level: Tensor,
    scales: Sequence[float],
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    deterministic: bool,
) -> list[Tensor]:
    return [grad.new_empty(batch, h, w, grad.shape[3]) for h, w in zip(heights, widths, strict=True)]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features, rois, level, scales, _, _, sampling_ratio, aligned = inputs
    ctx.save_for_backward(rois, level)
    ctx.scales, ctx.sampling_ratio, ctx.aligned = scales, sampling_ratio, aligned
    ctx.batch = features[0].shape[0]
    ctx.heights, ctx.widths = [f.shape[1] for f in features], [f.shape[2] for f in features]


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    rois, level = ctx.saved_tensors
    grads = torch.ops.maskrcnn.roi_align_backward(
        grad.contiguous(),
        rois,
        level,
        ctx.scales,
        ctx.batch,
        ctx.heights,
        ctx.widths,
        ctx.sampling_ratio,
        ctx.aligned,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grads, None, None, None, None, None, None, None


torch.library.register_autograd("maskrcnn::roi_align", _backward, setup_context=_setup_context)
