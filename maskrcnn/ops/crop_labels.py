"""Mask targets of RoIs, cropped from label planes (He et al. 2017, Mask R-CNN, section 3.1: "the intersection between
an RoI and its associated ground-truth mask")."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.ops.checks import check_boxes, check_device, check_vector, refuse_any
from maskrcnn.ops.library import reference
from maskrcnn.ops.roi_taps import roi_taps


def crop_labels(
    planes: Tensor, rois: Tensor, plane: Tensor, ids: Tensor, size: int, binary: bool = False, aligned: bool = True
) -> Tensor:
    """Targets of the mask head: for each RoI, the fraction of every bin that the RoI's cell covers.

    The values are those of ``roi_align(one_hot_masks, rois, size, spatial_scale=1, sampling_ratio=-1,
    aligned=aligned)``, soft as in torchvision, but the kernel reads the label planes under the RoI and no mask is made.

    Args:
        planes: int32 [P, H, W]; 0 is background, other values are instance ids.
        rois: float [K, 4], xyxy in pixels.
        plane: int64 [K], the plane of each RoI's cell.
        ids: int64 [K], the cell's id in that plane.
        size: bins per side.
        binary: return 1 where the fraction is at least 0.5, else 0, as detectron2 does.
        aligned: coordinates are continuous, the centre of pixel i is at i + 0.5, as in :func:`masks_to_rle` by default.
            False: as torchvision's mask targets, where the centre is at i, so that the target is shifted half a pixel
            down and right of the RoI; a RoI is then at least one pixel wide and high.

    Returns:
        float32 [K, size, size].

    Raises:
        ValueError: for a wrong shape, dtype or device.
        RuntimeError: for a RoI that is not finite, or a plane out of range (on the CPU; on a GPU its bins are 0).
    """
    _check(planes, rois, plane, ids)
    return torch.ops.maskrcnn.crop_labels(
        planes.contiguous(),
        rois.detach().float().contiguous(),
        plane.contiguous(),
        ids.contiguous(),
        size,
        binary,
        aligned,
    )


def crop_labels_reference(
    planes: Tensor, rois: Tensor, plane: Tensor, ids: Tensor, size: int, binary: bool = False, aligned: bool = True
) -> Tensor:
    """:func:`crop_labels` by its definition, one RoI at a time, in pure PyTorch and in the float type of ``rois``."""
    _check(planes, rois, plane, ids)
    fractions = rois.new_zeros(len(rois), size, size)
    for k, (own, cell, box) in enumerate(zip(plane.tolist(), ids.tolist(), rois.cpu(), strict=True)):
        y, rows, x, columns = roi_taps(box, 1.0, (size, size), planes.shape[1:], -1, aligned)
        mask = (planes[own, y, x].cpu().long() == cell).to(rois.dtype)
        fractions[k] = rows @ mask @ columns.T
    return (fractions >= 0.5).to(rois.dtype) if binary else fractions


def _check(planes: Tensor, rois: Tensor, plane: Tensor, ids: Tensor) -> None:
    if planes.dim() != 3 or planes.dtype != torch.int32:
        raise ValueError(f"planes is {planes.dtype} {tuple(planes.shape)}; expected int32 [P, H, W]")
    check_boxes("rois", rois)
    for name, values in (("plane", plane), ("ids", ids)):
        check_vector(name, values, rois.shape[0])
        if values.dtype != torch.int64:
            raise ValueError(f"{name} has dtype {values.dtype}; expected int64")
        check_device(name, values, "planes", planes)
    check_device("rois", rois, "planes", planes)


@reference("crop_labels")
def _(planes: Tensor, rois: Tensor, plane: Tensor, ids: Tensor, size: int, binary: bool, aligned: bool) -> Tensor:
    refuse_any(~rois.isfinite(), "rois: roi {} has a coordinate that is not finite")
    outside = (plane < 0) | (plane >= len(planes))
    refuse_any(outside, f"plane: {{1}} of roi {{0}} is not one of the {len(planes)} planes", plane)
    return crop_labels_reference(planes, rois, plane, ids, size, binary, aligned)


@torch.library.register_fake("maskrcnn::crop_labels")
def _(planes: Tensor, rois: Tensor, plane: Tensor, ids: Tensor, size: int, binary: bool, aligned: bool) -> Tensor:
    return rois.new_empty(rois.shape[0], size, size)


for _device in ("cpu", "cuda"):  # coordinates need float32's digits
    torch.library.register_autocast("maskrcnn::crop_labels", _device, torch.float32)
