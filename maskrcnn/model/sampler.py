"""Random choice of examples with a bounded share of positives (Girshick 2015, Fast R-CNN, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.model.rois import rank_in_group


def sample_balanced(
    labels: Tensor, image: Tensor, images: int, count: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """Choose at most ``count`` examples of each image: at most ``positive_fraction`` positives, the rest negatives.

    Args:
        labels: int64 [N]: above 0 positive, 0 negative, below 0 never chosen.
        image: int64 [N], the image of each example, 0..images - 1.
        images: number of images.
        count: how many to choose of an image; fewer where there are not enough. Missing positives are made up with
            negatives.
        positive_fraction: largest share of positives.

    Returns:
        int64 indices of the positives and of the negatives, each ascending; drawn with torch's global generator.
    """
    # of each image those never chosen, the negatives, the positives
    kind = labels.clamp(-1, 1).add_(1).add_(image, alpha=3)
    available = torch.bincount(kind, minlength=3 * images).view(images, 3)
    positives = available[:, 2].clamp(max=int(count * positive_fraction))
    limits = torch.stack([torch.zeros_like(positives), count - positives, positives], dim=1)
    # Of each kind those with the smallest random keys are chosen. Sorting all keys would be most of the work, so only
    # those below a bound are sorted, which 2 * limit + 64 of the kind pass on average (or all of them, if there are no
    # more); that fewer than the limit pass it has a probability below 1e-21 (Chernoff's bound).
    bound = ((2 * limits + 64) / available).flatten()
    keys = torch.rand(len(labels), device=labels.device)
    small = torch.nonzero(keys < bound.index_select(0, kind)).squeeze(1)  # index_select: 4 times as fast as bound[kind]
    small = small[keys[small].argsort()]
    kind = kind[small]
    chosen = small[rank_in_group(kind) < limits.flatten()[kind]].sort().values
    is_positive = labels[chosen] > 0
    return chosen[is_positive], chosen[~is_positive]
