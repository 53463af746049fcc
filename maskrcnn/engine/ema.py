"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average (EMA) of a network's weights (Tarvainen & Valpola 2017, Mean teachers, section 2):
    after step t, average <- d * average + (1 - d) * weights.

    d = min(decay, (1 + t) / (10 + t)), and 0 after the first step, so that the weights of the first steps have little
    influence. The warm-up is that of TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates`` (its API
    documentation). ``torch.optim.swa_utils.AveragedModel`` would copy its count to the GPU at every step, and wait.

    Attributes:
        module: the network with the averaged weights; its buffers are those of the network.
        updates: number of updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Include the weights of ``model``, after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - decay)
        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(value)
        self.updates += 1
