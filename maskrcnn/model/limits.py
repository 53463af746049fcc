"""What bounds a prediction: how many candidates are looked at, and which of them are reported."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limits:
    """Limits of a prediction, an argument of each call: the network's own are :attr:`maskrcnn.MaskRCNN.limits`.

    Attributes:
        pre_nms: best anchors of each level and image that go into the RPN's non-maximum suppression.
        post_nms: best proposals of each image that the box head looks at.
        score_threshold: detections of a lower score are dropped.
        nms_threshold: IoU above which the lower-scored detection of the same class is dropped.
        detections_per_image: most detections that are reported for one image.
    """

    pre_nms: int = 1000
    post_nms: int = 1000
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 200

    def at_least(self, cells: int) -> Limits:
        """The same, but for at least ``cells`` detections in an image.

        Four times as many proposals are kept, of twelve times as many anchors of each level: with the limits for small
        pictures, the brightest cells' anchors leave no room for the others' (benchmarks/results/tiles-cpu.md).
        """
        return replace(
            self,
            pre_nms=max(self.pre_nms, 12 * cells),
            post_nms=max(self.post_nms, 4 * cells),
            detections_per_image=max(self.detections_per_image, cells),
        )
