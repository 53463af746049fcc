"""Mask R-CNN (He et al. 2017): backbone, pyramid, proposals, boxes, masks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from maskrcnn.model.anchors import AnchorGenerator
from maskrcnn.model.fpn import FPN
from maskrcnn.model.group_norm import GroupNorm
from maskrcnn.model.limits import Limits
from maskrcnn.model.losses import MaskLoss
from maskrcnn.model.mask_head import MaskHead
from maskrcnn.model.resnet import Norm, ResNet
from maskrcnn.model.roi_heads import BoxHead, RoIPool
from maskrcnn.model.rois import join_rois, read_counts
from maskrcnn.model.rpn import RegionProposalNetwork, RPNHead
from maskrcnn.options import Fraction, Range, checked
from maskrcnn.structures import Detections, InstanceLabels

Depth = Literal[18, 34, 50, 101]
NumClasses = Annotated[int, Range(1, 10_000)]
Stages = Annotated[int, Range(1, 4)]
Width = Annotated[int, Range(32, 4096, multiple_of=32)]  # GroupNorm has 32 groups
Channels = Annotated[int, Range(32, 4096, multiple_of=32)]
BoxHidden = Annotated[int, Range(1, 65536)]
MaskConvs = Annotated[int, Range(0, 64)]
AnchorSize = Annotated[float, Range(0, 65536, open_low=True)]
AnchorRatio = Annotated[float, Range(0.01, 100)]
Sampled = Annotated[int, Range(1, 1_000_000)]
Detected = Annotated[int, Range(1, 1_000_000)]
TverskyWeight = Annotated[float, Range(0, 1000)]
Positive = Annotated[float, Range(0, 1_000_000, open_low=True)]

# Mean and standard deviation of ImageNet's RGB values in 0..1, which torchvision's weights were trained with.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


class MaskRCNN(nn.Module):
    """The Mask R-CNN network: padded images to losses (in training mode) or detections (in evaluation mode).

    Args:
        backbone: [B, 3, H, W] -> C2..C5.
        neck: C2..C5 -> P2..P6.
        rpn, box_head, mask_head: see their classes.
        pixel_mean, pixel_std: mean and standard deviation of RGB in 0..1, by which images are normalized.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: RegionProposalNetwork,
        box_head: BoxHead,
        mask_head: MaskHead,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = backbone, neck, rpn
        self.box_head, self.mask_head = box_head, mask_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, 3, 1, 1))

    @property
    def limits(self) -> Limits:
        """Default limits of a prediction."""
        head = self.box_head
        return Limits(
            self.rpn.pre_nms[1],
            self.rpn.post_nms[1],
            head.score_threshold,
            head.nms_threshold,
            head.detections_per_image,
        )

    @property
    def aligned(self) -> bool:
        """Whether masks are aligned with their boxes; if not, they are shifted half a pixel down and right."""
        return self.mask_head.pool.aligned

    @torch.no_grad()
    def statistics_of(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Means and variances of ``images`` in the GroupNorm layers, for :meth:`with_statistics`.

        Args:
            images, sizes: see :meth:`forward`; all images count together.

        Returns:
            float [L, 2, 1, groups] for L layers, on the network's device.
        """
        network, norms = self._with_own_norms()
        if not norms:
            return images.new_zeros((0, 2, 1, 1), dtype=torch.float32)
        for norm in norms:
            norm.recording = True
        network.features(images, sizes)
        return torch.stack([norm.fixed for norm in norms if norm.fixed is not None])

    def with_statistics(self, statistics: Tensor) -> MaskRCNN:
        """A network with the same weights whose GroupNorm layers use ``statistics`` instead of their input's own.

        For the tiles of a large picture, so that they are normalized like the whole: GroupNorm computes its statistics
        over a whole feature map (Wu & He 2018, equation 7). This network is unchanged.

        Args:
            statistics: from :meth:`statistics_of`.
        """
        network, norms = self._with_own_norms()
        for norm, fixed in zip(norms, statistics.to(self.pixel_mean.device), strict=True):
            norm.fixed = fixed
        return network

    def _with_own_norms(self) -> tuple[MaskRCNN, list[GroupNorm]]:
        """A network with the same weights and GroupNorm layers of its own in backbone and neck, and these. Not the mask
        head's: a RoI is never divided into tiles."""
        network = copy.copy(self)
        weights = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        parts = {name: copy.deepcopy(getattr(self, name), dict(weights)) for name in ("backbone", "neck")}
        network._modules = {**self._modules, **parts}
        return network, [
            module for part in parts.values() for module in part.modules() if isinstance(module, GroupNorm)
        ]

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[InstanceLabels] | None = None,
        masks: bool = True,
        limits: Limits | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: uint8 or float [B, 3, H, W], RGB in 0..255; H and W multiples of 32, padded at the right and bottom.
            sizes: (h, w) of each image without its padding.
            targets: the ground-truth instances of each image; required in training mode, ignored otherwise.
            masks: False skips the mask head in evaluation mode: the detections' masks have shape [K, 0, 0].
            limits: limits of the detections in evaluation mode; default: :attr:`limits`.

        Returns:
            In training mode ``loss_objectness``, ``loss_rpn_box_reg``, ``loss_classifier``, ``loss_box_reg`` and
            ``loss_mask`` (scalars; Mask R-CNN's loss is their sum); else one :class:`Detections` per image. If the
            network is not :attr:`aligned`, their masks still have to be aligned
            (:func:`maskrcnn.predict.masks.align_masks`).

        Raises:
            ValueError: for a wrong shape or size, or missing targets in training mode.
        """
        self._check(images, sizes, targets)
        image_size = (images.shape[-2], images.shape[-1])
        features = self.features(images, sizes)
        if not self.training:
            return self._detect(features, image_size, sizes, masks, self.limits if limits is None else limits)
        assert targets is not None
        proposals, losses = self.rpn(features, image_size, sizes, targets)
        sampled = self.box_head.sample(proposals, targets)
        logits, deltas = self.box_head(features, sampled.rois, image_size)
        losses |= self.box_head.losses(logits, deltas, sampled)
        losses |= self.mask_head.losses(features, sampled, targets, image_size, sizes)
        return losses

    def features(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """P2..P6 of the normalized images. The padding is 0 after normalization, that is, the mean colour."""
        x = (images.float() / 255 - self.pixel_mean) / self.pixel_std
        for image, (height, width) in enumerate(sizes):
            x[image, :, height:] = 0
            x[image, :, :, width:] = 0
        return self.neck(self.backbone(x))

    def _detect(
        self,
        features: list[Tensor],
        image_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        with_masks: bool,
        limits: Limits,
    ) -> list[Detections]:
        proposals, _ = self.rpn(features, image_size, sizes, limits=limits)
        logits, deltas = self.box_head(features, join_rois(proposals).flatten(0, 1), image_size)
        *padded, num_detections = self.box_head.detect(logits, deltas, proposals, sizes, limits)
        counts = read_counts(num_detections)
        rois, scores, labels = (
            torch.cat([rows[:count] for rows, count in zip(values, counts, strict=True)]) for values in padded
        )
        if with_masks:
            masks = self.mask_head(features, rois, labels, image_size).sigmoid()
        else:
            masks = scores.new_empty(scores.shape[0], 0, 0)
        parts = (values.split(counts) for values in (rois[:, 1:], scores, labels, masks))
        return [Detections(*part) for part in zip(*parts, sizes, strict=True)]

    def _check(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[InstanceLabels] | None
    ) -> None:
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[-2] % 32 or images.shape[-1] % 32:
            raise ValueError(f"images has shape {tuple(images.shape)}; expected [B, 3, H, W], H and W multiples of 32")
        if len(sizes) != len(images):
            raise ValueError(f"sizes has {len(sizes)} entries for {len(images)} images")
        if self.training and (targets is None or len(targets) != len(images)):
            found = "None" if targets is None else f"{len(targets)} entries"
            raise ValueError(f"targets: {found}; training expects the instances of each of {len(images)} images")


@checked
def mask_rcnn_resnet_fpn(
    depth: Depth,
    num_classes: NumClasses,
    *,
    norm: Norm = "group",
    norm_eps: Annotated[float, Range(0, 1)] = 1e-5,
    stride_in_1x1: bool = False,
    stages: Stages = 4,
    width: Width = 64,
    channels: Channels = 256,
    box_hidden: BoxHidden = 1024,
    mask_convs: MaskConvs = 4,
    pixel_mean: Sequence[Annotated[float, Range(-1000, 1000)]] = PIXEL_MEAN,
    pixel_std: Sequence[Positive] = PIXEL_STD,
    anchor_sizes: Sequence[Sequence[AnchorSize]] = ((8, 4), (16,), (32,), (64,), (128,)),
    anchor_ratios: Sequence[AnchorRatio] = (0.5, 1.0, 1.5, 2.0),
    anchors_rounded: bool = False,
    rpn_pre_nms: tuple[Detected, Detected] = (2000, 1000),
    rpn_post_nms: tuple[Detected, Detected] = (2000, 1000),
    rpn_nms_threshold: Fraction = 0.7,
    rpn_batch_per_image: Sampled = 256,
    rpn_positive_fraction: Fraction = 0.5,
    rpn_high: Fraction = 0.7,
    rpn_low: Fraction = 0.3,
    roi_batch_per_image: Sampled = 512,
    roi_positive_fraction: Fraction = 0.25,
    roi_foreground_iou: Fraction = 0.5,
    roi_canonical_size: Annotated[int, Range(1, 65536)] = 224,
    aligned: bool = True,
    box_score_threshold: Fraction = 0.05,
    nms_threshold: Fraction = 0.5,
    detections_per_image: Detected = 200,
    smooth_l1_beta: Annotated[float, Range(0, 1_000_000)] = 1 / 9,
    mask_loss: MaskLoss = "bce",
    tversky_alpha: TverskyWeight = 0.3,
    tversky_beta: TverskyWeight = 0.7,
    binary_mask_targets: bool = False,
) -> MaskRCNN:
    """Build Mask R-CNN on a ResNet of ``depth`` layers with a feature pyramid and random weights.

    All options are plain values, which checkpoints store. The defaults are those of torchvision's
    ``maskrcnn_resnet50_fpn`` except for ``norm`` (torchvision: ``frozen_batch``), ``anchor_sizes`` and
    ``anchor_ratios`` (torchvision: 32 to 512, one size per level, ratios 0.5, 1, 2), ``anchors_rounded`` (torchvision:
    True), ``aligned`` (torchvision: False) and ``detections_per_image`` (torchvision: 100).

    Args:
        depth: 18, 34, 50 or 101.
        num_classes: cell classes, without background.
        norm: ``group``: GroupNorm in backbone, pyramid and mask head (He et al. 2019, Rethinking ImageNet
            Pre-training), for training from random weights with small batches; ``batch`` and ``frozen_batch``: only
            in the backbone.
        stages, width: see :class:`maskrcnn.model.resnet.ResNet`.
        channels: channels of the pyramid, the RPN and the mask head.
        box_hidden: width of the box head's two fully connected layers.
        mask_convs: number of 3x3 convolutions of the mask head.
        norm_eps: epsilon of the backbone's norms; torchvision's COCO models were trained with 0.
        stride_in_1x1: see :class:`maskrcnn.model.resnet.Bottleneck`.
        anchor_sizes: sizes at P2..P6 in pixels, one level more than ``stages``. The RPN's output channels are shared by
            the levels, so the first size of each level should be the same multiple of its stride; therefore 8 comes
            before the additional 4 at P2.
        aligned: in RoIAlign and mask targets, the centre of pixel i is at i + 0.5, as for boxes. False: at i, as in
            torchvision; masks are then shifted half a pixel down and right of their boxes.

    Raises:
        ValueError: for invalid values or combinations.
    """
    if len(anchor_sizes) != stages + 1:
        raise ValueError(f"anchor_sizes has {len(anchor_sizes)} levels; expected {stages + 1}, P2 to P{stages + 2}")
    backbone = ResNet(depth, norm, stride_in_1x1, norm_eps, stages, width)
    neck = FPN(backbone.out_channels, channels, group_norm=norm == "group")
    anchors = AnchorGenerator(anchor_sizes, anchor_ratios, anchors_rounded)
    rpn = RegionProposalNetwork(
        RPNHead(neck.out_channels, anchors.per_position),
        anchors,
        pre_nms=rpn_pre_nms,
        post_nms=rpn_post_nms,
        nms_threshold=rpn_nms_threshold,
        batch_per_image=rpn_batch_per_image,
        positive_fraction=rpn_positive_fraction,
        high=rpn_high,
        low=rpn_low,
        smooth_l1_beta=smooth_l1_beta,
    )
    box_head = BoxHead(
        neck.out_channels,
        num_classes,
        pool=RoIPool(7, canonical_size=roi_canonical_size, aligned=aligned),
        hidden=box_hidden,
        batch_per_image=roi_batch_per_image,
        positive_fraction=roi_positive_fraction,
        foreground_iou=roi_foreground_iou,
        score_threshold=box_score_threshold,
        nms_threshold=nms_threshold,
        detections_per_image=detections_per_image,
        smooth_l1_beta=smooth_l1_beta,
    )
    mask_head = MaskHead(
        neck.out_channels,
        num_classes,
        pool=RoIPool(14, canonical_size=roi_canonical_size, aligned=aligned),
        group_norm=norm == "group",
        loss=mask_loss,
        tversky_alpha=tversky_alpha,
        tversky_beta=tversky_beta,
        binary_targets=binary_mask_targets,
        num_convs=mask_convs,
    )
    return MaskRCNN(backbone, neck, rpn, box_head, mask_head, pixel_mean, pixel_std)


def mask_rcnn_resnet50_fpn(num_classes: int, **options: Any) -> MaskRCNN:
    """:func:`mask_rcnn_resnet_fpn` with a ResNet-50."""
    return mask_rcnn_resnet_fpn(50, num_classes, **options)
