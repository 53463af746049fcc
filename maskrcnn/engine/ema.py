"""Exponential moving average of a network's weights, by :class:`torch.optim.swa_utils.AveragedModel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def build_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Build an exponential moving average (EMA) of the weights of ``model`` (Tarvainen & Valpola 2017, Mean teachers,
    section 2): after step t, average <- d * average + (1 - d) * weights.

    d = min(decay, (1 + t) / (10 + t)), and 0 after the first step, so that the weights of the first steps have little
    influence. The warm-up is that of TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates`` (its API
    documentation).

    Returns:
        A module with the average in ``module``, to be updated by ``update_parameters(model)`` after each step; buffers
        are those of the network.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor | int) -> None:
        steps = torch.as_tensor(updates)
        current_decay = ((1 + steps) / (10 + steps)).clamp(max=decay)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, (1 - current_decay).to(average.dtype))

    averaged = AveragedModel(model, multi_avg_fn=update)
    averaged.requires_grad_(False)
    return averaged
