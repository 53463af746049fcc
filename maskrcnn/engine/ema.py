"""The moving average of a network's weights, by :class:`torch.optim.swa_utils.AveragedModel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average (EMA) of the weights over the steps (Tarvainen & Valpola 2017, Mean teachers, section
    2): after step t, average <- d * average + (1 - d) * weights.

    d = min(decay, (1 + t) / (10 + t)), and 0 after the first step: the first steps' weights are soon forgotten. The
    warm-up is that of TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates`` (its API documentation).

    Returns:
        A module that holds the average in ``module`` and is moved by ``update_parameters(model)`` after each step;
        buffers are those of the network.
    """

    @torch.no_grad()
    def move(averages: Sequence[Tensor], weights: Sequence[Tensor], updates: Tensor | int) -> None:
        steps = torch.as_tensor(updates)
        decay_now = ((1 + steps) / (10 + steps)).clamp(max=decay)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, (1 - decay_now).to(average.dtype))

    averaged = AveragedModel(model, multi_avg_fn=move)
    averaged.requires_grad_(False)
    return averaged
