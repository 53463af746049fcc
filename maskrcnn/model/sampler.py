"""Random sampling of examples with a bounded fraction of positives (Girshick 2015, Fast R-CNN, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.model.rois import rank_in_group


def sample_balanced(
    labels: Tensor, image: Tensor, num_images: int, count: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """Sample at most ``count`` examples per image, at most the fraction ``positive_fraction`` of them positive.

    Args:
        labels: int64 [N]: above 0 positive, 0 negative, below 0 never sampled.
        image: int64 [N], the image of each example, 0..num_images - 1.
        num_images: number of images.
        count: number of examples per image; fewer if there are not enough. Missing positives are replaced by negatives.
        positive_fraction: maximum fraction of positives.

    Returns:
        int64 indices of the positives and of the negatives, each ascending; drawn with torch's global generator.
    """
    # three kinds per image: never sampled, negative, positive
    kind = labels.clamp(-1, 1).add_(1).add_(image, alpha=3)
    available = torch.bincount(kind, minlength=3 * num_images).view(num_images, 3)
    positives = available[:, 2].clamp(max=int(count * positive_fraction))
    limits = torch.stack([torch.zeros_like(positives), count - positives, positives], dim=1)
    # Of each kind, the examples with the smallest random keys are sampled. Sorting all keys would take most of the
    # time, so only keys below a bound are sorted: on average 2 * limit + 64 of the kind, or all if there are fewer. The
    # probability that fewer than the limit are below the bound is less than 1e-21 (Chernoff bound).
    bound = ((2 * limits + 64) / available).flatten()
    keys = torch.rand(len(labels), device=labels.device)
    small = torch.nonzero(keys < bound.index_select(0, kind)).squeeze(1)  # index_select: 4 times as fast as bound[kind]
    small = small[keys[small].argsort()]
    kind = kind[small]
    chosen = small[rank_in_group(kind) < limits.flatten()[kind]].sort().values
    is_positive = labels[chosen] > 0
    return chosen[is_positive], chosen[~is_positive]
