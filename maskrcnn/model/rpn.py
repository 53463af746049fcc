"""Region proposal network (Ren et al. 2015, Faster R-CNN, section 3), shared over the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn import ops
from maskrcnn.distributed import mean_count
from maskrcnn.model.anchors import AnchorGenerator
from maskrcnn.model.box_coder import BoxCoder
from maskrcnn.model.conv import Conv3x3
from maskrcnn.model.limits import Limits
from maskrcnn.model.rois import best_of_each_image, clip_boxes
from maskrcnn.model.sampler import sample_balanced
from maskrcnn.structures import InstanceLabels


class RPNHead(nn.Module):
    """Predicts objectness and box deltas: a 3x3 convolution and two 1x1 convolutions, shared by all levels.

    A level with fewer anchors than others uses the first channels. Parameter names are torchvision's.

    Args:
        channels: channels of the pyramid.
        anchors_per_position: number of anchors per position, for each level.
    """

    def __init__(self, channels: int, anchors_per_position: Sequence[int]) -> None:
        super().__init__()
        self.anchors_per_position = list(anchors_per_position)
        max_anchors = max(anchors_per_position)
        conv = Conv3x3(channels, channels)
        self.conv = nn.Sequential(nn.Sequential(conv, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(channels, max_anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, max_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """P2..P6 [B, C, H_l, W_l] -> for each level objectness logits [B, A_l] and deltas [B, A_l, 4], in the order of
        :class:`AnchorGenerator`: row, column, anchor."""
        objectness, deltas = [], []
        conv = self.conv.get_submodule("0.0")
        assert isinstance(conv, Conv3x3)
        for hidden, count in zip(conv.forward_maps(features), self.anchors_per_position, strict=True):
            hidden = F.relu(hidden, inplace=True)
            logits = self.cls_logits(hidden)[:, :count]
            offsets = self.bbox_pred(hidden)[:, : 4 * count]
            objectness.append(logits.permute(0, 2, 3, 1).flatten(1))
            deltas.append(offsets.permute(0, 2, 3, 1).reshape(len(hidden), -1, 4))
        return objectness, deltas


class RegionProposalNetwork(nn.Module):
    """Generates proposals from anchors, and computes the losses of the RPN.

    Args:
        head: predicts objectness and deltas for every anchor.
        anchors: generates the anchors.
        pre_nms: (training, inference): maximum number of anchors per level and image before NMS.
        post_nms: (training, inference): maximum number of proposals per image after NMS.
        nms_threshold: IoU above which the lower-scored proposal of the same level is dropped.
        min_size: proposals with a side shorter than this, in pixels, are dropped.
        batch_per_image, positive_fraction: number of anchors sampled for the losses, and the maximum fraction of
            positives.
        high, low: an anchor is positive if its IoU with an instance is at least ``high``, negative if below ``low``.
        smooth_l1_beta: absolute error at which the box loss changes from quadratic to linear.
    """

    def __init__(
        self,
        head: RPNHead,
        anchors: AnchorGenerator,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (2000, 1000),
        nms_threshold: float = 0.7,
        min_size: float = 1e-3,
        batch_per_image: int = 256,
        positive_fraction: float = 0.5,
        high: float = 0.7,
        low: float = 0.3,
        smooth_l1_beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        self.head, self.anchors = head, anchors
        self.pre_nms, self.post_nms = pre_nms, post_nms
        self.nms_threshold, self.min_size = nms_threshold, min_size
        self.batch_per_image, self.positive_fraction = batch_per_image, positive_fraction
        self.high, self.low, self.smooth_l1_beta = high, low, smooth_l1_beta
        self.coder = BoxCoder()

    def forward(
        self,
        features: Sequence[Tensor],
        image_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[InstanceLabels] | None = None,
        limits: Limits | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Proposals, and in training the losses.

        Args:
            features: P2..P6, each [B, C, H_l, W_l].
            image_size: (H, W) of the padded batch in pixels.
            sizes: (H, W) of each image without padding.
            targets: the instances of each image, in training.
            limits: limits of the proposals in inference; default: those of the RPN.

        Returns:
            Boxes float32 [B, R, 4] (xyxy in pixels) by descending score, padded with zeros; and ``loss_objectness`` and
            ``loss_rpn_box_reg`` if targets are given.
        """
        objectness, deltas = self.head(features)
        anchors = self.anchors(features, image_size)
        proposals = self.propose(objectness, deltas, anchors, sizes, limits)
        if targets is None:
            return proposals, {}
        return proposals, self.losses(torch.cat(objectness, 1), torch.cat(deltas, 1), anchors, targets)

    @torch.no_grad()
    def propose(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Tensor,
        sizes: Sequence[tuple[int, int]],
        limits: Limits | None = None,
    ) -> Tensor:
        """Decode the highest-scored anchors of each level, clip them to their image and apply NMS.

        Args:
            objectness, deltas: logits [B, A_l] and deltas [B, A_l, 4] of each level.
            anchors: [A, 4], of all levels.
            sizes: (H, W) of each image in pixels.
            limits: see :meth:`forward`.

        Returns:
            Boxes [B, R, 4], see :meth:`forward`.
        """
        if limits is None:
            pre_nms, post_nms = (pair[0 if self.training else 1] for pair in (self.pre_nms, self.post_nms))
        else:
            pre_nms, post_nms = limits.pre_nms, limits.post_nms
        scores, boxes, levels = [], [], []
        # level by level, all images at once: the limit pre_nms is per level
        level_anchors = anchors.split([logits.shape[1] for logits in objectness])
        for level, (logits, offsets, references) in enumerate(zip(objectness, deltas, level_anchors, strict=True)):
            best, index = logits.float().topk(min(pre_nms, logits.shape[1]), dim=1)
            chosen = offsets.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen, references[index]))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(index, level))
        score, box, box_level = (torch.cat(parts, 1) for parts in (scores, boxes, levels))
        box = clip_boxes(box, sizes)
        index, kept = best_of_each_image(box, score, box_level, self.nms_threshold, self.min_size, post_nms)
        return box.gather(1, index[..., None].expand(-1, -1, 4)).where(kept[..., None], 0)

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, targets: Sequence[InstanceLabels]
    ) -> dict[str, Tensor]:
        """Faster R-CNN's equation 1 over sampled anchors of the whole batch, with N_cls = N_reg = their number
        (over several processes: :func:`mean_count`).

        Args:
            objectness, deltas: logits [B, A] and deltas [B, A, 4].
            anchors: [A, 4].
            targets: the instances of each image.
        """
        num_images = len(targets)
        true_boxes = torch.cat([target.boxes for target in targets])
        counts = [len(anchors)] * num_images, [len(target) for target in targets]
        matches = ops.match_boxes(anchors.repeat(num_images, 1), true_boxes, self.high, self.low, True, *counts)
        matches = matches.view(num_images, -1)
        index, sampled = sample_balanced(matches + 1, self.batch_per_image, self.positive_fraction)
        match = matches.gather(1, index).where(sampled, -1)
        is_positive = match >= 0
        logits = objectness.gather(1, index).float()
        objectness_loss = F.binary_cross_entropy_with_logits(
            logits, is_positive.float(), weight=sampled.float(), reduction="sum"
        )
        references = anchors[index]
        # what is not positive has its own anchor for a true box; the box that is added serves pictures without cells
        matched = F.pad(true_boxes, (0, 0, 0, 1))[match.clamp(min=0)].where(is_positive[..., None], references)
        box_losses = F.smooth_l1_loss(
            deltas.gather(1, index[..., None].expand(-1, -1, 4)).float(),
            self.coder.encode(matched, references),
            beta=self.smooth_l1_beta,
            reduction="none",
        )
        count = mean_count(sampled.sum(), anchors.device)
        return {
            "loss_objectness": objectness_loss / count,
            "loss_rpn_box_reg": (box_losses * is_positive[..., None]).sum() / count,
        }
