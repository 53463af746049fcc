"""The box branch (Girshick 2015, Fast R-CNN; Lin et al. 2017, FPN, section 4.2): which proposals are cells, of which
class, and where exactly."""

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

    ``output_size`` bins a side, ``sampling_ratio`` points a side in each; ``canonical_size`` is the side in pixels of
    the RoI that goes to level 4. ``aligned``: pixel i of a map has its centre at i + 0.5, as in detectron2; False: at
    i, as in torchvision.
    """

    output_size: int
    sampling_ratio: int = 2
    canonical_size: int = 224
    aligned: bool = True

    def __call__(self, features: Sequence[Tensor], rois: Tensor, image_size: tuple[int, int]) -> Tensor:
        """P2..P6 and RoIs [K, 5] (image index, xyxy in pixels) -> [K, C, output_size, output_size]."""
        pyramid = features[:-1]  # the last level serves the RPN alone
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
    """The RoIs of a batch that the heads are trained on.

    Attributes:
        rois: float32 [R, 5], image index and xyxy in pixels; ordered by image.
        classes: int64 [R], 0 for background.
        positive: int64 [Q], which of them are cells.
        instances: int64 [Q], of those, the index into the cells of all images joined.
        boxes: float32 [Q, 4], of those, the box of that cell.
    """

    rois: Tensor
    classes: Tensor
    positive: Tensor
    instances: Tensor
    boxes: Tensor


class BoxHead(nn.Module):
    """Two fully connected layers, a classifier and class-specific box deltas; sampling, losses and detections.

    Parameter names are torchvision's.

    Args:
        channels: channels of the pyramid.
        num_classes: cell classes, without background.
        pool: RoIAlign, 7 bins a side in the paper.
        hidden: width of the fully connected layers.
        batch_per_image, positive_fraction: proposals sampled for the losses.
        foreground_iou: IoU with a cell from which a proposal is positive.
        score_threshold: detections of a lower score are dropped.
        nms_threshold: IoU above which the lower-scored detection of the same class is dropped.
        detections_per_image: most detections kept.
        min_size: detections with a shorter side, in pixels, are dropped.
        smooth_l1_beta: where the box loss turns from quadratic to linear.
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
    def sample(self, proposals: Tensor, labels: Sequence[InstanceLabels]) -> SampledRoIs:
        """Proposals and the cells' own boxes, matched with the cells and sampled to a bounded share of positives.

        Args:
            proposals: RoIs float32 [R, 5] (image index, xyxy in pixels).
            labels: the cells of each image.
        """
        images, cells = len(labels), torch.cat([label.boxes for label in labels])
        cell_counts = [len(label) for label in labels]
        image_of_cell = torch.repeat_interleave(torch.tensor(cell_counts)).to(cells.device)
        candidates = torch.cat([proposals, join_rois(image_of_cell, cells)])
        image, order = candidates[:, 0].long().sort(stable=True)
        candidates = candidates[order]
        counts = torch.bincount(image, minlength=images).tolist()  # waits for the device, once for all images
        iou = self.foreground_iou
        matches = ops.match_boxes(candidates[:, 1:], cells, iou, iou, False, counts, cell_counts)
        positive, negative = sample_balanced(matches + 1, image, images, self.batch_per_image, self.positive_fraction)
        instances = matches[positive]
        classes = torch.zeros_like(matches)
        classes[positive] = torch.cat([label.classes for label in labels])[instances]
        chosen = torch.cat([positive, negative]).sort().values
        at = torch.searchsorted(chosen, positive)
        return SampledRoIs(candidates[chosen], classes[chosen], at, instances, cells[instances])

    def losses(self, logits: Tensor, deltas: Tensor, sampled: SampledRoIs) -> dict[str, Tensor]:
        """Fast R-CNN's equation 1: cross-entropy over all RoIs, smooth L1 of the true class's deltas over positives;
        both over the number of RoIs (over several processes: :func:`mean_count`)."""
        targets = self.coder.encode(sampled.boxes, sampled.rois[sampled.positive, 1:])
        own = deltas[sampled.positive, sampled.classes[sampled.positive]]
        box_loss = F.smooth_l1_loss(own, targets, beta=self.smooth_l1_beta, reduction="sum")
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
        """What was found. A proposal may become a detection of several classes; NMS works within a class.

        Args:
            logits: [R, K + 1], ``deltas`` [R, K + 1, 4], both of the proposals, which are RoIs [R, 5].
            sizes: (H, W) of each image in pixels.
            limits: of the detections; default: those that the head was built with.

        Returns:
            RoIs float32 [D, 5] (image index, xyxy in pixels), scores [D] and classes int64 [D] (1..K); ordered by
            image, and in each from high to low score.
        """
        own: Limits | BoxHead = self if limits is None else limits
        scores = logits.softmax(dim=1)[:, 1:]
        row, column = torch.nonzero(scores > own.score_threshold, as_tuple=True)
        score, image = scores[row, column], proposals[row, 0].long()
        boxes = clip_boxes(self.coder.decode(deltas[row, column + 1], proposals[row, 1:]), image, sizes)
        group = image * self.num_classes + column
        keep = best_of_each_image(
            boxes, score, image, group, own.nms_threshold, self.min_size, own.detections_per_image
        )
        return join_rois(image[keep], boxes[keep]), score[keep], column[keep] + 1
