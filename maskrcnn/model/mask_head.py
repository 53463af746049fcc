"""The mask branch (He et al. 2017, Mask R-CNN, section 3 and figure 4 right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskrcnn import ops
from maskrcnn.distributed import mean_count
from maskrcnn.model.conv import Conv3x3
from maskrcnn.model.group_norm import GROUPS
from maskrcnn.model.losses import MaskLoss, mask_loss
from maskrcnn.model.roi_heads import RoIPool, SampledRoIs
from maskrcnn.structures import InstanceLabels

CHUNK = 128
"""RoIs that go through the head together in inference: a tile of 1,000 cells needs no more memory than one of 128."""


class MaskHead(nn.Module):
    """Some 3x3 convolutions (four in the paper), a transposed one that doubles the size, and one 28x28 mask per class.

    Args:
        channels: channels of the pyramid and of the head.
        num_classes: cell classes, without background.
        pool: RoIAlign, 14 bins a side in the paper; masks are twice that. Its ``aligned`` holds for the targets too.
        group_norm: GroupNorm after each 3x3 convolution.
        loss, tversky_alpha, tversky_beta: see :mod:`maskrcnn.model.losses`.
        num_convs: 3x3 convolutions.
        binary_targets: threshold the mask targets at 0.5, as detectron2 does; torchvision trains with soft ones.
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
        # channel 0 is background: never trained, kept so that torchvision's weights fit
        self.mask_fcn_logits = nn.Conv2d(channels, num_classes + 1, 1)
        nn.init.kaiming_normal_(self.conv5_mask.weight, mode="fan_out", nonlinearity="relu")
        # small, so that training begins with masks that say "one half" everywhere and not with confident noise
        nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)
        for module in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.pool, self.mask_size = pool, 2 * pool.output_size
        self.loss, self.tversky_alpha, self.tversky_beta = loss, tversky_alpha, tversky_beta
        self.binary_targets = binary_targets

    def forward(self, features: Sequence[Tensor], rois: Tensor, classes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """RoIs [R, 5] and their classes [R] (1..K) -> logits [R, 28, 28] of the mask of that class, in float32."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(rois) <= CHUNK:
            return self._logits(features, rois, classes, image_size)
        chunks = zip(rois.split(CHUNK), classes.split(CHUNK), strict=True)
        return torch.cat([self._logits(features, *chunk, image_size) for chunk in chunks])

    def _logits(self, features: Sequence[Tensor], rois: Tensor, classes: Tensor, image_size: tuple[int, int]) -> Tensor:
        x = self.convs(self.pool(features, rois, image_size))
        logits = self.mask_fcn_logits(F.relu(self.conv5_mask(x), inplace=True))
        return logits[torch.arange(rois.shape[0], device=rois.device), classes].float()

    def losses(
        self,
        features: Sequence[Tensor],
        sampled: SampledRoIs,
        labels: Sequence[InstanceLabels],
        image_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """``loss_mask`` over the positive RoIs: of each the mask of its true class alone (section 3, "decouples")."""
        count = mean_count(len(sampled.positive), sampled.rois.device)
        if len(sampled.positive) == 0:
            return {"loss_mask": _attached_zero(self)}
        rois = sampled.rois[sampled.positive]
        logits = self(features, rois, sampled.classes[sampled.positive], image_size)
        targets = self.targets(rois, sampled.instances, labels, image_size, sizes)
        weights = {"tversky_alpha": self.tversky_alpha, "tversky_beta": self.tversky_beta}
        return {"loss_mask": mask_loss(self.loss, logits, targets, count=count, **weights)}

    def targets(
        self,
        rois: Tensor,
        instances: Tensor,
        labels: Sequence[InstanceLabels],
        image_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """float32 [R, 28, 28]: the share of each bin that its cell covers, cut from the label planes in one call."""
        height, width = image_size
        planes = torch.cat([label.padded(height, width).planes for label in labels])
        starts = [0]
        for label, (h, w) in zip(labels, sizes, strict=True):
            own = planes[starts[-1] : starts[-1] + len(label.planes)]
            starts.append(starts[-1] + len(label.planes))
            # RoIAlign repeats the last pixel of a picture for samples beyond its centre, up to the edge: half a pixel
            # away, or a whole one when not aligned. In a padded batch they read the pixel behind the edge, and no other
            if h < height:
                own[:, h] = own[:, h - 1]
            if w < width:
                own[:, :, w] = own[:, :, w - 1]
        plane = torch.cat([label.plane + start for label, start in zip(labels, starts, strict=False)])
        ids = torch.cat([label.ids for label in labels])
        return ops.crop_labels(
            planes,
            rois[:, 1:],
            plane[instances],
            ids[instances],
            self.mask_size,
            self.binary_targets,
            self.pool.aligned,
        )


def _attached_zero(module: nn.Module) -> Tensor:
    """0 that depends on every weight, so that each has a gradient (of 0) in a batch without cells."""
    return torch.stack([p.sum() for p in module.parameters()]).sum() * 0


def _conv(channels: int, group_norm: bool) -> nn.Sequential:
    conv = Conv3x3(channels, channels, bias=not group_norm)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
        return nn.Sequential(conv, nn.ReLU(inplace=True))
    # not model.GroupNorm: an RoI is seen whole, and always normalised by its own statistics
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, channels), nn.ReLU(inplace=True))
