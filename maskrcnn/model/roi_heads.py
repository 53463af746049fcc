"""The box branch, which classifies proposals and refines their boxes (Girshick 2015, Fast R-CNN; Lin et al. 2017, FPN,
section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from maskrcnn import ops
from maskrcnn.distributed import mean_count
from maskrcnn.model.box_coder import BoxCoder
from maskrcnn.model.limits import Limits
from maskrcnn.model.rois import best_of_each_image, clip_boxes, has_area, join_rois, read_counts
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

        The number of samples is read, so that the heads need not compute padding.

        Args:
            proposals: boxes float32 [B, R, 4] (xyxy in pixels), padded with boxes without area.
            targets: the instances of each image.
        """
        true_boxes = torch.cat([target.boxes for target in targets])
        candidates = torch.cat([proposals, pad_sequence([target.boxes for target in targets], batch_first=True)], dim=1)
        images, count = candidates.shape[:2]
        counts, iou = ([count] * images, [len(target) for target in targets]), self.foreground_iou
        matches = ops.match_boxes(candidates.flatten(0, 1), true_boxes, iou, iou, False, *counts).view(images, count)
        labels = torch.where(has_area(candidates), matches + 1, -1)
        index, sampled = sample_balanced(labels, self.batch_per_image, self.positive_fraction)
        is_positive = sampled & (labels.gather(1, index) > 0)
        index = index + count * torch.arange(images, device=index.device)[:, None]  # in all candidates
        chosen, positive = (
            index.where(mask, images * count).flatten().sort().values for mask in (sampled, is_positive)
        )
        num_chosen, num_positive = read_counts(torch.stack([sampled.sum(), is_positive.sum()]))
        chosen, positive = chosen[:num_chosen], positive[:num_positive]
        instances = matches.flatten()[positive]
        positive = torch.searchsorted(chosen, positive)
        classes = torch.zeros_like(chosen)
        classes[positive] = torch.cat([target.classes for target in targets])[instances]
        return SampledRoIs(
            join_rois(candidates).flatten(0, 1)[chosen], classes, positive, instances, true_boxes[instances]
        )

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detections from class logits and deltas. A proposal may become a detection of several classes; NMS is per
        class.

        Args:
            logits, deltas: [B * R, K + 1] and [B * R, K + 1, 4], of the proposals.
            proposals: boxes [B, R, 4] (xyxy in pixels), padded with boxes without area.
            sizes: (H, W) of each image in pixels.
            limits: limits of the detections; default: those of the head.

        Returns:
            RoIs float32 [B, D, 5] (image index, xyxy in pixels), scores [B, D] and classes int64 [B, D] (1..K), by
            descending score; and how many of each image are detections, int64 [B]. The others are padding.
        """
        used: Limits | BoxHead = self if limits is None else limits
        images, count = proposals.shape[:2]
        scores = logits.softmax(dim=1)[:, 1:].unflatten(0, (images, count))
        valid = (scores > used.score_threshold) & has_area(proposals)[..., None]
        scores = scores.masked_fill(~valid, -torch.inf).flatten(1)
        boxes = self.coder.decode(deltas[:, 1:].unflatten(0, (images, count)), proposals[:, :, None])
        boxes = clip_boxes(boxes, sizes).flatten(1, 2)
        category = torch.arange(self.num_classes, device=scores.device).repeat(images, count)
        index, kept = best_of_each_image(
            boxes, scores, category, used.nms_threshold, self.min_size, used.detections_per_image
        )
        rois = join_rois(boxes.gather(1, index[..., None].expand(-1, -1, 4)))
        return rois, scores.gather(1, index), category.gather(1, index) + 1, kept.sum(dim=1)
