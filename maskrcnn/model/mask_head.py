"""The mask branch (He et al. 2017, Mask R-CNN, section 3 and figure 4 right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskrcnn import ops
from maskrcnn.distributed import mean_count
from maskrcnn.model.conv import Conv3x3
from maskrcnn.model.group_norm import GroupNorm
from maskrcnn.model.losses import MaskLoss, mask_loss
from maskrcnn.model.roi_heads import RoIPool, SampledRoIs
from maskrcnn.structures import InstanceLabels

CHUNK = 128
"""RoIs per forward pass in inference, so that a tile of 1,000 cells needs no more memory than one of 128."""
RECOMPUTED = 64
"""RoIs whose last maps are computed together again in the backward pass."""


class MaskHead(nn.Module):
    """Predicts a 28x28 mask per class: 3x3 convolutions (four in the paper) and a transposed one that doubles the size.

    Args:
        channels: channels of the pyramid and of the head.
        num_classes: cell classes, without background.
        pool: RoIAlign, 14 bins per side in the paper; masks are twice that. Its ``aligned`` also applies to targets.
        group_norm: GroupNorm after each 3x3 convolution.
        loss, tversky_alpha, tversky_beta: see :mod:`maskrcnn.model.losses`.
        num_convs: number of 3x3 convolutions.
        binary_targets: threshold the mask targets at 0.5, as detectron2 does; torchvision uses soft targets.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        pool: RoIPool,
        group_norm: bool = False,
        loss: MaskLoss = "bce",
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        binary_targets: bool = False,
        num_convs: int = 4,
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(_conv(channels, group_norm) for _ in range(num_convs)))
        self.conv5_mask = nn.ConvTranspose2d(channels, channels, 2, 2)
        # channel 0, background, is never trained; it exists so that torchvision's weights fit
        self.mask_fcn_logits = nn.Conv2d(channels, num_classes + 1, 1)
        nn.init.kaiming_normal_(self.conv5_mask.weight, mode="fan_out", nonlinearity="relu")
        # small, so that training starts with probabilities of 0.5 everywhere, not with confident noise
        nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)
        for module in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.pool, self.mask_size = pool, 2 * pool.output_size
        self.loss, self.tversky_alpha, self.tversky_beta = loss, tversky_alpha, tversky_beta
        self.binary_targets = binary_targets

    def forward(self, features: Sequence[Tensor], rois: Tensor, classes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """RoIs [R, 5] and their classes [R] (1..K) -> mask logits [R, 28, 28] of these classes, in float32."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(rois) <= CHUNK:
            return self._logits(features, rois, classes, image_size)
        chunks = zip(rois.split(CHUNK), classes.split(CHUNK), strict=True)
        return torch.cat([self._logits(features, *chunk, image_size) for chunk in chunks])

    def _logits(self, features: Sequence[Tensor], rois: Tensor, classes: Tensor, image_size: tuple[int, int]) -> Tensor:
        x = self.convs(self.pool(features, rois, image_size))
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._predict(x, classes)
        # What conv5_mask computes is as large as what the four convolutions before it compute together. It is computed
        # again in the backward pass, some RoIs at a time, so that neither it nor its gradient is ever there as a whole.
        parts = zip(x.split(RECOMPUTED), classes.split(RECOMPUTED), strict=True)
        return torch.cat(
            [checkpoint(self._predict, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        )

    def _predict(self, x: Tensor, classes: Tensor) -> Tensor:
        """What :attr:`convs` computed [R, C, 14, 14] and classes [R] -> mask logits [R, 28, 28], in float32."""
        logits = self.mask_fcn_logits(F.relu(self.conv5_mask(x), inplace=True))
        return logits[torch.arange(classes.shape[0], device=classes.device), classes].float()

    def losses(
        self,
        features: Sequence[Tensor],
        sampled: SampledRoIs,
        targets: Sequence[InstanceLabels],
        image_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """``loss_mask`` over the positive RoIs, for the mask of the true class only (section 3, "decouples")."""
        count = mean_count(len(sampled.positive), sampled.rois.device)
        if len(sampled.positive) == 0:
            return {"loss_mask": _zero_with_gradient(self)}
        rois = sampled.rois[sampled.positive]
        logits = self(features, rois, sampled.classes[sampled.positive], image_size)
        masks = self.mask_targets(rois, sampled.instances, targets, image_size, sizes)
        weights = {"tversky_alpha": self.tversky_alpha, "tversky_beta": self.tversky_beta}
        return {"loss_mask": mask_loss(self.loss, logits, masks, count=count, **weights)}

    def mask_targets(
        self,
        rois: Tensor,
        instances: Tensor,
        targets: Sequence[InstanceLabels],
        image_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """The fraction of each bin that the RoI's cell covers, float32 [R, 28, 28], for ``instances`` int64 [R] of all
        images concatenated."""
        height, width = image_size
        planes = torch.cat([target.padded(height, width).planes for target in targets])
        starts = [0]
        for target, (h, w) in zip(targets, sizes, strict=True):
            image_planes = planes[starts[-1] : starts[-1] + len(target.planes)]
            starts.append(starts[-1] + len(target.planes))
            # RoIAlign repeats the last pixel of an image for samples beyond its centre, up to the edge: half a pixel
            # away, or one pixel when not aligned. In a padded batch it reads the first padding pixel instead.
            if h < height:
                image_planes[:, h] = image_planes[:, h - 1]
            if w < width:
                image_planes[:, :, w] = image_planes[:, :, w - 1]
        plane = torch.cat([target.plane + start for target, start in zip(targets, starts, strict=False)])
        ids = torch.cat([target.ids for target in targets])
        return ops.crop_labels(
            planes,
            rois[:, 1:],
            plane[instances],
            ids[instances],
            self.mask_size,
            self.binary_targets,
            self.pool.aligned,
        )


def _zero_with_gradient(module: nn.Module) -> Tensor:
    """A zero that depends on every weight, so that each gets a gradient (of 0) in a batch without cells."""
    return torch.stack([p.sum() for p in module.parameters()]).sum() * 0


def _conv(channels: int, group_norm: bool) -> nn.Sequential:
    conv = Conv3x3(channels, channels, bias=not group_norm)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
        return nn.Sequential(conv, nn.ReLU(inplace=True))
    return nn.Sequential(conv, GroupNorm(channels, relu=True))
