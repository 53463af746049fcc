"""Mask R-CNN (He et al. 2017): backbone, pyramid, proposals, boxes, masks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn.model.anchors import AnchorGenerator
from maskrcnn.model.fpn import FPN
from maskrcnn.model.group_norm import GROUPS, GroupNorm
from maskrcnn.model.limits import Limits
from maskrcnn.model.losses import MaskLoss
from maskrcnn.model.mask_head import MaskHead
from maskrcnn.model.resnet import Norm, ResNet
from maskrcnn.model.roi_heads import BoxHead, RoIPool
from maskrcnn.model.rpn import RegionProposalNetwork, RPNHead
from maskrcnn.structures import Detections, InstanceLabels

# Mean and standard deviation of ImageNet's RGB values in 0..1, which torchvision's weights were trained with.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


class MaskRCNN(nn.Module):
    """The network, from padded pictures to losses (in training mode) or detections.

    Args:
        backbone: [B, 3, H, W] -> C2..C5.
        neck: C2..C5 -> P2..P6.
        rpn, box_head, mask_head: see there.
        pixel_mean, pixel_std: of RGB in 0..1; pictures are shifted and scaled by them.
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
        """Those of a prediction for which none are given."""
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
        """Whether masks lie in their boxes; else they show what lies half a pixel down and right of them."""
        return self.mask_head.pool.aligned

    @torch.no_grad()
    def with_statistics_of(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> MaskRCNN:
        """This network for parts of a picture, which GroupNorm normalises as parts of the whole.

        GroupNorm's means and variances are taken over a whole map (Wu & He 2018, equation 7). The network that is
        returned shares this one's weights and uses those of the given images, all of them together, for whatever it is
        shown; this one stays as it is.

        Args:
            images, sizes: see :meth:`forward`.
        """
        twin = copy.copy(self)
        weights = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        parts = {name: copy.deepcopy(getattr(self, name), dict(weights)) for name in ("backbone", "neck")}
        twin._modules = {**self._modules, **parts}
        norms = [module for module in twin.modules() if isinstance(module, GroupNorm)]
        for norm in norms:
            norm.gathers = True
        if norms:
            twin.features(images, sizes)
        for norm in norms:
            norm.gathers = False
        return twin

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        labels: Sequence[InstanceLabels] | None = None,
        masks: bool = True,
        limits: Limits | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses in training mode, detections in evaluation mode.

        Args:
            images: uint8 or float [B, 3, H, W], RGB in 0..255; H and W multiples of 32, padded at the right and bottom.
            sizes: (h, w) of each image without its padding.
            labels: the cells of each image; needed in training mode, and ignored otherwise.
            masks: False spares the mask head in evaluation mode: the detections' masks have shape [K, 0, 0].
            limits: of the detections, in evaluation mode; default: :attr:`limits`.

        Returns:
            In training ``loss_objectness``, ``loss_rpn_box_reg``, ``loss_classifier``, ``loss_box_reg`` and
            ``loss_mask`` (scalars; Mask R-CNN's loss is their sum); else one :class:`Detections` per image, whose masks
            are the network's own: where it is not :attr:`aligned`, :class:`maskrcnn.predict.predictor.Predictor` moves
            them into their boxes.

        Raises:
            ValueError: for another shape or size, or labels that are missing in training.
        """
        self._check(images, sizes, labels)
        image_size = (images.shape[-2], images.shape[-1])
        features = self.features(images, sizes)
        if not self.training:
            return self._detect(features, image_size, sizes, masks, self.limits if limits is None else limits)
        assert labels is not None
        proposals, losses = self.rpn(features, image_size, sizes, labels)
        sampled = self.box_head.sample(proposals, labels)
        logits, deltas = self.box_head(features, sampled.rois, image_size)
        losses |= self.box_head.losses(logits, deltas, sampled)
        losses |= self.mask_head.losses(features, sampled, labels, image_size, sizes)
        return losses

    def features(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """P2..P6 of the normalised images. The padding is 0 after the normalisation, that is, of mean colour."""
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
        logits, deltas = self.box_head(features, proposals, image_size)
        rois, scores, labels = self.box_head.detect(logits, deltas, proposals, sizes, limits)
        if with_masks:
            masks = self.mask_head(features, rois, labels, image_size).sigmoid()
        else:
            masks = scores.new_empty(scores.shape[0], 0, 0)
        detections = []
        for image, (height, width) in enumerate(sizes):
            own = torch.nonzero(rois[:, 0] == image).squeeze(1)
            detections.append(Detections(rois[own, 1:], scores[own], labels[own], masks[own], (height, width)))
        return detections

    def _check(self, images: Tensor, sizes: Sequence[tuple[int, int]], labels: Sequence[InstanceLabels] | None) -> None:
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[-2] % 32 or images.shape[-1] % 32:
            raise ValueError(f"images has shape {tuple(images.shape)}; expected [B, 3, H, W], H and W multiples of 32")
        if len(sizes) != len(images):
            raise ValueError(f"sizes has {len(sizes)} entries for {len(images)} images")
        if self.training and (labels is None or len(labels) != len(images)):
            raise ValueError("labels: training needs the cells of each image")


def mask_rcnn_resnet_fpn(
    depth: int,
    num_classes: int,
    *,
    norm: Norm = "group",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    stages: int = 4,
    width: int = 64,
    channels: int = 256,
    box_hidden: int = 1024,
    mask_convs: int = 4,
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
    anchor_sizes: Sequence[Sequence[float]] = ((8, 4), (16,), (32,), (64,), (128,)),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    anchors_rounded: bool = False,
    rpn_pre_nms: tuple[int, int] = (2000, 1000),
    rpn_post_nms: tuple[int, int] = (2000, 1000),
    rpn_nms_threshold: float = 0.7,
    rpn_batch_per_image: int = 256,
    rpn_positive_fraction: float = 0.5,
    rpn_high: float = 0.7,
    rpn_low: float = 0.3,
    roi_batch_per_image: int = 512,
    roi_positive_fraction: float = 0.25,
    roi_foreground_iou: float = 0.5,
    roi_canonical_size: int = 224,
    aligned: bool = True,
    box_score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 200,
    smooth_l1_beta: float = 1 / 9,
    mask_loss: MaskLoss = "bce",
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
    binary_mask_targets: bool = False,
) -> MaskRCNN:
    """Mask R-CNN on a ResNet of ``depth`` layers with a feature pyramid, from random weights.

    All options are plain values, which checkpoints keep. The defaults are torchvision's
    (``maskrcnn_resnet50_fpn``) but for: ``norm`` (torchvision: ``frozen_batch``), ``anchor_sizes`` and
    ``anchor_ratios`` (torchvision: 32 to 512, one size a level, ratios 0.5, 1, 2), ``anchors_rounded`` (torchvision:
    True), ``aligned`` (torchvision: False) and ``detections_per_image`` (torchvision: 100).

    Args:
        depth: 18, 34, 50 or 101.
        num_classes: cell classes, without background.
        norm: ``group``: GroupNorm in backbone, pyramid and mask head (He et al. 2019, Rethinking ImageNet
            Pre-training), for training from random weights with small batches; ``batch`` and ``frozen_batch``: in the
            backbone alone.
        stages, width: see :class:`maskrcnn.model.resnet.ResNet`.
        channels: of the pyramid, the RPN and the mask head.
        box_hidden: width of the box head's two fully connected layers.
        mask_convs: 3x3 convolutions of the mask head.
        norm_eps: of the backbone's norms; torchvision's COCO models were trained and are scored with 0.
        stride_in_1x1: see :class:`maskrcnn.model.resnet.Bottleneck`.
        anchor_sizes: of P2..P6, in pixels, one level more than ``stages``. The RPN's output channels are shared by the
            levels, so the first size of each level should be the same multiple of its stride; 8 leads at P2, where 4 is
            added.
        aligned: RoIAlign and mask targets take pixel i to have its centre at i + 0.5, as boxes do. False: at i, as
            torchvision's do; masks then show what lies half a pixel down and right of their boxes.

    Raises:
        ValueError: for values that no network can be built from.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; expected at least 1")
    if len(anchor_sizes) != stages + 1:
        raise ValueError(f"anchor_sizes has {len(anchor_sizes)} levels; expected {stages + 1}, P2 to P{stages + 2}")
    if channels < 1 or (norm == "group" and channels % GROUPS):
        raise ValueError(f"channels is {channels}; expected a multiple of {GROUPS}, for GroupNorm")
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
