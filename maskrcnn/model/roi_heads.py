"""The box branch, which classifies proposals and refines their boxes (Girshick 2015, Fast R-CNN; Lin et al. 2017, FPN,
section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn import ops
from maskrcnn.distributed import mean_count
from maskrcnn.model.box_coder import BoxCoder
from maskrcnn.model.limits import Limits
from maskrcnn.model.rois import best_of_each_image, clip_boxes, join_rois
from maskrcnn.model.sampler import sample_balanced
from maskrcnn.structures import InstanceLabels


@dataclass(frozen=True)
class RoIPool:
    """RoIAlign over P2..P5 (He et al. 2017, Mask R-CNN, section 3; level by FPN's equation 1).

    Attributes:
        output_size: bins per side.
        sampling_ratio: sampling points per side of a bin.
        canonical_size: side in pixels of a RoI that belongs to level 4.
        aligned: the centre of pixel i of a map is at i + 0.5, as in detectron2; False: at i, as in torchvision.
    """

    output_size: int
    sampling_ratio: int = 2
    canonical_size: int = 224
    aligned: bool = True

    def __call__(self, features: Sequence[Tensor], rois: Tensor, image_size: tuple[int, int]) -> Tensor:
        """P2..P6 and RoIs [K, 5] (image index, xyxy in pixels) -> [K, C, output_size, output_size]."""
        pyramid = features[:-1]  # the last level is only used by the RPN
        scales = [2.0 ** round(math.log2(f.shape[-2] / image_size[0])) for f in pyramid]
        return ops.multilevel_roi_align(
            pyramid,
            rois,
            self.output_size,
            scales,
            self.sampling_ratio,
            self.aligned,
            canonical_size=self.canonical_size,
        )


@dataclass(frozen=True)
class SampledRoIs:
    """The RoIs of a batch that were sampled for training the heads.

    Attributes:
        rois: float32 [R, 5], image index and xyxy in pixels; ordered by image.
        classes: int64 [R], 0 for background.
        positive: int64 [Q], indices of the RoIs that are matched to an instance.
        instances: int64 [Q], index of that instance in the instances of all images concatenated.
        boxes: float32 [Q, 4], box of that instance.
    """

    rois: Tensor
    classes: Tensor
    positive: Tensor
    instances: Tensor
    boxes: Tensor


class BoxHead(nn.Module):
    """Classifies RoIs and predicts class-specific box deltas, with two shared fully connected layers.

    Parameter names are torchvision's.

    Args:
        channels: channels of the pyramid.
        num_classes: cell classes, without background.
        pool: RoIAlign, 7 bins per side in the paper.
        hidden: width of the fully connected layers.
        batch_per_image, positive_fraction: number of proposals sampled for the losses, and the maximum fraction of
            positives.
        foreground_iou: minimum IoU with an instance for a proposal to be positive.
        score_threshold: detections with a lower score are dropped.
        nms_threshold: IoU above which the lower-scored detection of the same class is dropped.
        detections_per_image: maximum number of detections.
        min_size: detections with a side shorter than this, in pixels, are dropped.
        smooth_l1_beta: absolute error at which the box loss changes from quadratic to linear.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        pool: RoIPool,
        hidden: int = 1024,
        batch_per_image: int = 512,
        positive_fraction: float = 0.25,
        foreground_iou: float = 0.5,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections_per_image: int = 200,
        min_size: float = 1e-2,
        smooth_l1_beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * pool.output_size**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, (num_classes + 1) * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        self.pool, self.num_classes = pool, num_classes
        self.batch_per_image, self.positive_fraction = batch_per_image, positive_fraction
        self.foreground_iou = foreground_iou
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.detections_per_image, self.min_size = detections_per_image, min_size
        self.smooth_l1_beta = smooth_l1_beta
        self.coder = BoxCoder(10.0, 5.0)

    def forward(self, features: Sequence[Tensor], rois: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """RoIs [R, 5] -> class logits [R, K + 1] (background first) and deltas [R, K + 1, 4], in float32."""
        x = self.pool(features, rois, image_size).flatten(1)
        x = F.relu(self.fc7(F.relu(self.fc6(x))))
        return self.cls_score(x).float(), self.bbox_pred(x).float().unflatten(1, (-1, 4))

    @torch.no_grad()
    def sample(self, proposals: Tensor, targets: Sequence[InstanceLabels]) -> SampledRoIs:
        """Match proposals and ground-truth boxes to the instances, and sample RoIs for training.

        Args:
            proposals: RoIs float32 [R, 5] (image index, xyxy in pixels).
            targets: the instances of each image.
        """
        num_images, true_boxes = len(targets), torch.cat([target.boxes for target in targets])
        target_counts = [len(target) for target in targets]
        target_image = torch.repeat_interleave(torch.tensor(target_counts)).to(true_boxes.device)
        candidates = torch.cat([proposals, join_rois(target_image, true_boxes)])
        image, order = candidates[:, 0].long().sort(stable=True)
        candidates = candidates[order]
        counts = torch.bincount(image, minlength=num_images).tolist()  # synchronizes, once for all images
        iou = self.foreground_iou
        matches = ops.match_boxes(candidates[:, 1:], true_boxes, iou, iou, False, counts, target_counts)
        positive, negative = sample_balanced(
            matches + 1, image, num_images, self.batch_per_image, self.positive_fraction
        )
        instances = matches[positive]
        classes = torch.zeros_like(matches)
        classes[positive] = torch.cat([target.classes for target in targets])[instances]
        chosen = torch.cat([positive, negative]).sort().values
        index = torch.searchsorted(chosen, positive)
        return SampledRoIs(candidates[chosen], classes[chosen], index, instances, true_boxes[instances])

    def losses(self, logits: Tensor, deltas: Tensor, sampled: SampledRoIs) -> dict[str, Tensor]:
        """Fast R-CNN's equation 1: cross-entropy of all RoIs, and smooth L1 of the true class's deltas of positives;
        both divided by the number of RoIs (over several processes: :func:`mean_count`)."""
        true_deltas = self.coder.encode(sampled.boxes, sampled.rois[sampled.positive, 1:])
        class_deltas = deltas[sampled.positive, sampled.classes[sampled.positive]]
        box_loss = F.smooth_l1_loss(class_deltas, true_deltas, beta=self.smooth_l1_beta, reduction="sum")
        count = mean_count(len(sampled.classes), logits.device)
        return {
            "loss_classifier": F.cross_entropy(logits, sampled.classes, reduction="sum") / count,
            "loss_box_reg": box_loss / count,
        }

    def detect(
        self,
        logits: Tensor,
        deltas: Tensor,
        proposals: Tensor,
        sizes: Sequence[tuple[int, int]],
        limits: Limits | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detections from class logits and deltas. A proposal may become a detection of several classes; NMS is per
        class.

        Args:
            logits, deltas: [R, K + 1] and [R, K + 1, 4], of the proposals.
            proposals: RoIs [R, 5].
            sizes: (H, W) of each image in pixels.
            limits: limits of the detections; default: those of the head.

        Returns:
            RoIs float32 [D, 5] (image index, xyxy in pixels), scores [D] and classes int64 [D] (1..K); ordered by
            image, then by descending score.
        """
        used: Limits | BoxHead = self if limits is None else limits
        scores = logits.softmax(dim=1)[:, 1:]
        row, column = torch.nonzero(scores > used.score_threshold, as_tuple=True)
        score, image = scores[row, column], proposals[row, 0].long()
        boxes = clip_boxes(self.coder.decode(deltas[row, column + 1], proposals[row, 1:]), image, sizes)
        group = image * self.num_classes + column
        keep = best_of_each_image(
            boxes, score, image, group, used.nms_threshold, self.min_size, used.detections_per_image
        )
        return join_rois(image[keep], boxes[keep]), score[keep], column[keep] + 1
