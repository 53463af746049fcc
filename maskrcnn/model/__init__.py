"""The network, one file per concept of the papers."""

from maskrcnn.model.mask_rcnn import MaskRCNN, mask_rcnn_resnet50_fpn, mask_rcnn_resnet_fpn

__all__ = ["MaskRCNN", "mask_rcnn_resnet50_fpn", "mask_rcnn_resnet_fpn"]
