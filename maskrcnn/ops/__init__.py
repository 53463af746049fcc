"""Python interface of the kernels, one file per op: docstring, checks, autograd, fake kernel, PyTorch reference."""

from maskrcnn.ops.conv3x3 import can_conv3x3, conv3x3, conv3x3_reference
from maskrcnn.ops.crop_labels import crop_labels, crop_labels_reference
from maskrcnn.ops.group_norm import group_norm, group_norm_reference, group_statistics
from maskrcnn.ops.library import build_info
from maskrcnn.ops.masks_to_rle import masks_to_rle, masks_to_rle_reference
from maskrcnn.ops.match_boxes import match_boxes, match_boxes_reference
from maskrcnn.ops.nms import batched_nms, nms, nms_reference, ranked_nms
from maskrcnn.ops.roi_align import multilevel_roi_align, roi_align, roi_align_reference, roi_levels

__all__ = [
    "batched_nms",
    "build_info",
    "can_conv3x3",
    "conv3x3",
    "conv3x3_reference",
    "crop_labels",
    "crop_labels_reference",
    "group_norm",
    "group_norm_reference",
    "group_statistics",
    "masks_to_rle",
    "masks_to_rle_reference",
    "match_boxes",
    "match_boxes_reference",
    "multilevel_roi_align",
    "nms",
    "nms_reference",
    "ranked_nms",
    "roi_align",
    "roi_align_reference",
    "roi_levels",
]
