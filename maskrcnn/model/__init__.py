"""The network, one file a concept of the papers."""

from maskrcnn.model.detections import Detections
from maskrcnn.model.mask_rcnn import MaskRCNN, mask_rcnn_resnet50_fpn, mask_rcnn_resnet_fpn

__all__ = ["Detections", "MaskRCNN", "mask_rcnn_resnet50_fpn", "mask_rcnn_resnet_fpn"]
