"""The moving average of a network's weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from maskrcnn.checkpoint import load_model_state
from maskrcnn.model import MaskRCNN


class WeightAverage:
    """Exponential moving average (EMA) of the weights over the steps (Tarvainen & Valpola 2017, Mean teachers, section
    2): after step t, shadow <- d * shadow + (1 - d) * weights.

    d = min(decay, (1 + t) / (10 + t)) with t = 0, 1, ...: the first steps' weights are soon forgotten. The warm-up is
    that of TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates`` (its API documentation).

    Attributes:
        model: the shadow, with float32 weights; buffers are those of the network.
        updates: t, the updates so far.
    """

    def __init__(self, model: MaskRCNN, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: MaskRCNN) -> None:
        """Move the shadow towards ``model``, once a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for shadow, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            shadow.lerp_(weight, 1 - decay)
        for buffer, value in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(value)
        self.updates += 1

    def state(self) -> dict[str, Any]:
        """Tensors and plain types, for a checkpoint."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """The inverse of :meth:`state`; ``path`` is for the error message."""
        load_model_state(self.model, state["model"], path)
        self.updates = state["updates"]
