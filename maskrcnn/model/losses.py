"""Mask losses: binary cross-entropy, Dice, their sum, and Tversky.

They take the logits z [R, S, S] of R RoIs and targets t [R, S, S] in 0..1 (soft where an outline crosses a bin), with
p = sigmoid(z). They compute in float32 (float64 for float64 input) even if autocast made the logits bfloat16: sums over
S*S = 784 bins need more than bfloat16's 8 bits.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MaskLoss = Literal["bce", "dice", "bce+dice", "tversky"]

SMOOTH = 1.0
"""Added to numerator and denominator of the overlap ratios, in bins: an empty prediction of an empty target has a loss
of 0, not 0/0, and the gradient stays finite."""


def mask_loss(
    kind: MaskLoss,
    logits: Tensor,
    targets: Tensor,
    *,
    count: Tensor | int | None = None,
    tversky_alpha: float = 0.3,
    tversky_beta: float = 0.7,
) -> Tensor:
    """The loss called ``kind``, averaged over RoIs.

    Args:
        kind: ``bce``, ``dice``, ``bce+dice`` or ``tversky``.
        logits: float [R, S, S], the mask logits of each RoI's true class.
        targets: [R, S, S] in 0..1.
        count: denominator of the mean over RoIs, from :func:`maskrcnn.distributed.mean_count`; default: R.
        tversky_alpha, tversky_beta: weights of false positives and false negatives.

    Returns:
        Scalar; for R = 0 a zero that depends on ``logits``.

    Raises:
        ValueError: for another name, or different shapes.
    """
    if logits.shape != targets.shape or logits.dim() != 3:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}; expected the same [R, S, S]"
        )
    if kind not in ("bce", "dice", "bce+dice", "tversky"):
        raise ValueError(f"kind is {kind!r}; expected bce, dice, bce+dice or tversky")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = targets.to(logits.dtype)
    if len(logits) == 0:
        return logits.sum()
    count = len(logits) if count is None else count
    with torch.autocast(logits.device.type, enabled=False):
        if kind == "bce":
            return bce_loss(logits, targets, count)
        if kind == "dice":
            return dice_loss(logits, targets, count)
        if kind == "bce+dice":
            return bce_loss(logits, targets, count) + dice_loss(logits, targets, count)
        return tversky_loss(logits, targets, count, tversky_alpha, tversky_beta)


def bce_loss(logits: Tensor, targets: Tensor, count: Tensor | int) -> Tensor:
    """Binary cross-entropy, mean over bins (He et al. 2017, Mask R-CNN, section 3), sum over RoIs divided by ``count``:

    L = -mean(t log p + (1 - t) log(1 - p))
    """
    bins = logits.shape[1] * logits.shape[2]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / (count * bins)


def dice_loss(logits: Tensor, targets: Tensor, count: Tensor | int) -> Tensor:
    """1 minus the Dice coefficient with squared sums (Milletari et al. 2016, V-Net, section 3), sum over RoIs divided
    by ``count``:

    L = 1 - (2 sum(p t) + s) / (sum(p^2) + sum(t^2) + s),   s = 1 bin
    """
    p = logits.sigmoid().flatten(1)
    t = targets.flatten(1)
    overlap = 2 * (p * t).sum(1) + SMOOTH
    total = (p * p).sum(1) + (t * t).sum(1) + SMOOTH
    return (1 - overlap / total).sum() / count


def tversky_loss(logits: Tensor, targets: Tensor, count: Tensor | int, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """1 minus the Tversky index (Salehi et al. 2017, Tversky loss function, equation 3), sum over RoIs divided by
    ``count``:

    L = 1 - (TP + s) / (TP + alpha FP + beta FN + s),   s = 1 bin,
    TP = sum(p t), FP = sum(p (1 - t)), FN = sum((1 - p) t)

    alpha = beta = 0.5 is Dice without squares; beta above alpha penalizes missed pixels more.
    """
    p = logits.sigmoid().flatten(1)
    t = targets.flatten(1)
    true_positive = (p * t).sum(1)
    false_positive = (p * (1 - t)).sum(1)
    false_negative = ((1 - p) * t).sum(1)
    index = (true_positive + SMOOTH) / (true_positive + alpha * false_positive + beta * false_negative + SMOOTH)
    return (1 - index).sum() / count
