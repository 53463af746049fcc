"""Random sampling of examples with a bounded fraction of positives (Girshick 2015, Fast R-CNN, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_balanced(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Sample at most ``count`` examples per image, at most the fraction ``positive_fraction`` of them positive.

    Args:
        labels: int64 [B, N]: above 0 positive, 0 negative, below 0 never sampled.
        count: number of examples per image; fewer if there are not enough. Missing positives are replaced by negatives.
        positive_fraction: maximum fraction of positives.

    Returns:
        Int64 indices [B, S] into each row, positives first, and whether each of them is sampled, bool [B, S]: the
        shape is the same for all labels, and what is not sampled is some other index. Drawn with torch's global
        generator.
    """
    # Of each kind, the examples with the smallest random keys are sampled.
    keys = torch.rand(labels.shape, device=labels.device)
    most = labels.shape[1]
    positive_keys, positives = _smallest(
        keys.masked_fill(labels <= 0, torch.inf), min(int(count * positive_fraction), most)
    )
    negative_keys, negatives = _smallest(keys.masked_fill(labels != 0, torch.inf), min(count, most))
    is_positive = positive_keys < torch.inf
    left = count - is_positive.sum(dim=1, keepdim=True)
    is_negative = (negative_keys < torch.inf) & (torch.arange(negatives.shape[1], device=labels.device) < left)
    return torch.cat([positives, negatives], dim=1), torch.cat([is_positive, is_negative], dim=1)


def _smallest(keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` smallest keys of each row, ascending, and their indices."""
    smallest, index = keys.topk(count, dim=1, largest=False)
    return smallest, index
