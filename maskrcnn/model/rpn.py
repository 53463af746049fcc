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
from maskrcnn.model.rois import best_of_each_image, clip_boxes, join_rois
from maskrcnn.model.sampler import sample_balanced
from maskrcnn.structures import InstanceLabels


class RPNHead(nn.Module):
    """A 3x3 convolution, then two 1x1 convolutions for objectness and box deltas, the same on every level.

    A level with fewer anchors than others uses the first channels. Parameter names are torchvision's.

    Args:
        channels: channels of the pyramid.
        anchors_per_position: for each level.
    """

    def __init__(self, channels: int, anchors_per_position: Sequence[int]) -> None:
        super().__init__()
        self.anchors_per_position = list(anchors_per_position)
        most = max(anchors_per_position)
        conv = Conv3x3(channels, channels)
        self.conv = nn.Sequential(nn.Sequential(conv, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(channels, most, 1)
        self.bbox_pred = nn.Conv2d(channels, most * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """P2..P6 [B, C, H_l, W_l] -> for each level objectness logits [B, A_l] and deltas [B, A_l, 4], A_l ordered by
        row, column and anchor as :class:`AnchorGenerator` orders them."""
        objectness, deltas = [], []
        conv = self.conv.get_submodule("0.0")
        assert isinstance(conv, Conv3x3)
        for hidden, count in zip(conv.over(features), self.anchors_per_position, strict=True):
            hidden = F.relu(hidden, inplace=True)
            logits = self.cls_logits(hidden)[:, :count]
            offsets = self.bbox_pred(hidden)[:, : 4 * count]
            objectness.append(logits.permute(0, 2, 3, 1).flatten(1))
            deltas.append(offsets.permute(0, 2, 3, 1).reshape(len(hidden), -1, 4))
        return objectness, deltas


class RegionProposalNetwork(nn.Module):
    """Proposals from anchors, and the losses that train it.

    Args:
        head: gives objectness and deltas for every anchor.
        anchors: the anchors.
        pre_nms: (training, inference): best anchors of each level and image that go into NMS.
        post_nms: (training, inference): best proposals of each image after NMS.
        nms_threshold: IoU above which the lower-scored proposal of the same level is dropped.
        min_size: proposals with a shorter side, in pixels, are dropped.
        batch_per_image, positive_fraction: anchors sampled for the losses.
        high, low: IoU with a cell from which an anchor is positive, and below which it is negative.
        smooth_l1_beta: where the box loss turns from quadratic to linear.
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
        labels: Sequence[InstanceLabels] | None = None,
        limits: Limits | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Proposals, and in training the losses.

        Args:
            features: P2..P6, each [B, C, H_l, W_l].
            image_size: (H, W) of the padded batch; ``sizes``: of the images in it.
            labels: cells of each image, in training.
            limits: of the proposals in inference; default: those that the RPN was built with.

        Returns:
            RoIs float32 [R, 5] (image index, xyxy in pixels), ordered by image and in each from high to low score; and
            ``loss_objectness``, ``loss_rpn_box_reg`` if labels are given.
        """
        objectness, deltas = self.head(features)
        anchors = self.anchors(features, image_size)
        proposals = self.propose(objectness, deltas, anchors, sizes, limits)
        if labels is None:
            return proposals, {}
        return proposals, self.losses(torch.cat(objectness, 1), torch.cat(deltas, 1), anchors, labels)

    @torch.no_grad()
    def propose(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Tensor,
        sizes: Sequence[tuple[int, int]],
        limits: Limits | None = None,
    ) -> Tensor:
        """The best anchors of each level, moved by their deltas, cut to their image, without near-duplicates.

        Args:
            objectness: of each level, logits [B, A_l]; ``deltas`` [B, A_l, 4].
            anchors: [A, 4], those of all levels.
            sizes: (H, W) of each image in pixels.
            limits: see :meth:`forward`.

        Returns:
            RoIs [R, 5] as :meth:`forward` gives them.
        """
        if limits is None:
            pre_nms, post_nms = (pair[0 if self.training else 1] for pair in (self.pre_nms, self.post_nms))
        else:
            pre_nms, post_nms = limits.pre_nms, limits.post_nms
        scores, boxes, levels = [], [], []
        # a feature map at a time, all images at once: the best are those of a level
        of_level = anchors.split([logits.shape[1] for logits in objectness])
        for level, (logits, offsets, references) in enumerate(zip(objectness, deltas, of_level, strict=True)):
            best, index = logits.float().topk(min(pre_nms, logits.shape[1]), dim=1)
            chosen = offsets.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen, references[index]))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(index, level))
        score, box, level_of = (torch.cat(parts, 1).flatten(0, 1) for parts in (scores, boxes, levels))
        image = torch.arange(len(sizes), device=box.device).repeat_interleave(len(box) // len(sizes))
        box = clip_boxes(box, image, sizes)
        group = image * len(objectness) + level_of
        keep = best_of_each_image(box, score, image, group, self.nms_threshold, self.min_size, post_nms)
        return join_rois(image[keep], box[keep])

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, labels: Sequence[InstanceLabels]
    ) -> dict[str, Tensor]:
        """Faster R-CNN's equation 1 over sampled anchors of the whole batch, with N_cls = N_reg = their number
        (over several processes: :func:`mean_count`).

        Args:
            objectness: logits [B, A]; ``deltas`` [B, A, 4]; ``anchors`` [A, 4].
        """
        images = len(labels)
        cells = torch.cat([label.boxes for label in labels])
        references = anchors.repeat(images, 1)
        image = torch.arange(images, device=anchors.device).repeat_interleave(len(anchors))
        matches = ops.match_boxes(
            references, cells, self.high, self.low, True, [len(anchors)] * images, [len(label) for label in labels]
        )
        positive, negative = sample_balanced(matches + 1, image, images, self.batch_per_image, self.positive_fraction)
        targets = self.coder.encode(cells[matches[positive]], references[positive])
        sampled = torch.cat([positive, negative])
        truth = torch.zeros(len(sampled), device=sampled.device)
        truth[: len(positive)] = 1
        box_loss = F.smooth_l1_loss(
            deltas.flatten(0, 1)[positive].float(), targets, beta=self.smooth_l1_beta, reduction="sum"
        )
        logits = objectness.flatten()[sampled].float()
        count = mean_count(len(sampled), anchors.device)
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / count,
            "loss_rpn_box_reg": box_loss / count,
        }
