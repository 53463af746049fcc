"""The mask losses against loops written by hand in float64."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from maskrcnn.model.losses import MaskLoss, mask_loss

KINDS = get_args(MaskLoss)


def _by_hand(kind: str, logits: np.ndarray, targets: np.ndarray, alpha: float, beta: float) -> float:
    bce, dice, tversky = [], [], []
    for z_roi, t_roi in zip(logits, targets, strict=True):
        pt = pp = tt = fp = fn = 0.0
        for z, t in zip(z_roi.ravel(), t_roi.ravel(), strict=True):
            p = 1 / (1 + math.exp(-z))
            bce.append(-(t * math.log(p) + (1 - t) * math.log(1 - p)))
            pt, pp, tt, fp, fn = pt + p * t, pp + p * p, tt + t * t, fp + p * (1 - t), fn + (1 - p) * t
        dice.append(1 - (2 * pt + 1) / (pp + tt + 1))
        tversky.append(1 - (pt + 1) / (pt + alpha * fp + beta * fn + 1))
    means = {"bce": np.mean(bce), "dice": np.mean(dice), "tversky": np.mean(tversky)}
    means["bce+dice"] = means["bce"] + means["dice"]
    return float(means[kind])


def _case(seed: int, rois: int = 3, size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rois, size, size, generator=generator, dtype=torch.float64) * 3
    targets = torch.rand(rois, size, size, generator=generator, dtype=torch.float64)
    targets[0] = (targets[0] > 0.5).double()
    return logits, targets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_values_of_hand_written_loops(kind: MaskLoss, alpha: float) -> None:
    logits, targets = _case(0)
    expected = _by_hand(kind, logits.numpy(), targets.numpy(), alpha, 1 - alpha)
    ours = mask_loss(kind, logits, targets, tversky_alpha=alpha, tversky_beta=1 - alpha)
    assert ours.item() == pytest.approx(expected, abs=1e-12)
    single = mask_loss(kind, logits.float(), targets.float(), tversky_alpha=alpha, tversky_beta=1 - alpha)
    assert single.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: MaskLoss) -> None:
    logits, targets = _case(1, rois=2, size=4)
    assert torch.autograd.gradcheck(lambda z: mask_loss(kind, z, targets), logits.requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
def test_empty_and_full_masks_stay_finite(kind: MaskLoss, target: float, logit: float) -> None:
    logits = torch.full((2, 28, 28), logit, requires_grad=True)
    loss = mask_loss(kind, logits, torch.full((2, 28, 28), target))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    if (logit > 0) == (target > 0) and logit != 0:
        assert loss.item() == pytest.approx(0, abs=1e-6)
    else:
        assert loss.item() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_no_roi_is_a_zero_with_a_gradient(kind: MaskLoss) -> None:
    logits = torch.zeros(0, 28, 28, requires_grad=True)
    loss = mask_loss(kind, logits, torch.zeros(0, 28, 28))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_logits_are_summed_in_float32(kind: MaskLoss) -> None:
    logits, targets = _case(2, rois=4, size=28)
    low = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mask_loss(kind, low, targets.float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(_by_hand(kind, low.double().numpy(), targets.numpy(), 0.3, 0.7), abs=1e-5)


def test_tversky_of_equal_weights_is_dice_without_squares() -> None:
    logits, targets = _case(3)
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    expected = 1 - (2 * (p * t).sum(1) + 2) / (p.sum(1) + t.sum(1) + 2)
    ours = mask_loss("tversky", logits, targets, tversky_alpha=0.5, tversky_beta=0.5)
    assert ours.item() == pytest.approx(expected.mean().item(), abs=1e-12)


def test_wrong_arguments_are_named() -> None:
    logits, targets = _case(4)
    with pytest.raises(ValueError, match="kind is 'focal'"):
        mask_loss("focal", logits, targets)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="targets"):
        mask_loss("bce", logits, targets[:1])
