"""Random choice of examples with a bounded share of positives (Girshick 2015, Fast R-CNN, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_balanced(labels: Tensor, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Choose at most ``count`` examples, at most ``positive_fraction`` of them positive, the rest negative.

    Args:
        labels: integer [N]: above 0 positive, 0 negative, below 0 never chosen.
        count: how many to choose; fewer where there are not enough. Missing positives are made up with negatives.
        positive_fraction: largest share of positives.

    Returns:
        int64 indices of the positives and of the negatives, each ascending; drawn with torch's global generator.
    """
    positive = torch.nonzero(labels > 0).squeeze(1)
    negative = torch.nonzero(labels == 0).squeeze(1)
    wanted = int(count * positive_fraction)
    positive = _choose(positive, wanted)
    return positive, _choose(negative, count - len(positive))


def _choose(indices: Tensor, count: int) -> Tensor:
    if len(indices) <= count:
        return indices
    return indices[torch.randperm(len(indices), device=indices.device)[:count]].sort().values
