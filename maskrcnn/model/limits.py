"""Limits of a prediction: how many candidates are considered, and which of them are reported."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limits:
    """Numbers of candidates and thresholds of a prediction, passed with each call of the network.

    The network's defaults are :attr:`maskrcnn.MaskRCNN.limits`.

    Attributes:
        pre_nms: maximum number of anchors per level and image before the RPN's non-maximum suppression.
        post_nms: maximum number of proposals per image for the box head.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the lower-scored detection of the same class is dropped.
        detections_per_image: maximum number of detections per image.
    """

    pre_nms: int = 1000
    post_nms: int = 1000
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 200

    def at_least(self, cells: int) -> Limits:
        """The same limits, raised where necessary for ``cells`` detections per image.

        Three times as many proposals are kept, out of nine times as many anchors per level: with the limits for small
        images, the anchors of the brightest cells would displace all others.
        """
        return replace(
            self,
            pre_nms=max(self.pre_nms, 9 * cells),
            post_nms=max(self.post_nms, 3 * cells),
            detections_per_image=max(self.detections_per_image, cells),
        )
