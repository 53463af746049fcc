"""The state of a training run, saved to and restored from ``last.pt``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn import distributed
from maskrcnn.checkpoint import load_model_state, load_optimizer_state, save_checkpoint
from maskrcnn.device import Precision
from maskrcnn.engine.ema import MovingAverage
from maskrcnn.errors import InputError
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS
from maskrcnn.model import MaskRCNN

BEST_BY = f"mask/AP@{MAX_DETECTIONS}"
"""The score that selects ``best.pt``."""


@dataclass
class Run:
    """The network, optimizer and progress of a training run; everything that changes is saved in ``last.pt``.

    Attributes:
        folder: folder of its files.
        device, precision: device and precision of the network.
        description: entries of its checkpoints besides the weights (:data:`maskrcnn.checkpoint.DESCRIPTION`).
        model: the network that is trained.
        network: ``model``, or DistributedDataParallel around it.
        optimizer: its optimizer.
        ema: exponential moving average of the weights, or None.
        epoch: number of completed epochs.
        step_in_epoch: number of completed steps of the current epoch.
        step: number of completed steps.
        validated: number of epochs completed at the last validation; -1 if a validation before the first step is due.
        best: the highest validation score :data:`BEST_BY`.
    """

    folder: Path
    device: torch.device
    precision: Precision
    description: dict[str, Any]
    model: MaskRCNN
    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: MovingAverage | None = None
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    validated: int = 0
    best: float = -math.inf

    @property
    def scored_model(self) -> MaskRCNN:
        """The weights that are validated and saved in ``best.pt``: the moving average, if there is one."""
        model = self.model if self.ema is None else self.ema.module
        assert isinstance(model, MaskRCNN)
        return model

    def save(self) -> None:
        """Write ``last.pt`` in process 0; all processes wait for it."""
        average = None
        if self.ema is not None:
            average = {"model": self.scored_model.state_dict(), "updates": self.ema.updates}
        contents = {
            **self.description,
            "model": self.model.state_dict(),
            "ema": average,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "validated": self.validated,
            "best": self.best,
            "best_by": BEST_BY,
            "processes": distributed.world_size(),
        }
        distributed.from_main(lambda: save_checkpoint(self.folder / "last.pt", contents))

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`save` wrote; raises InputError for another network or number of processes."""
        path = self.folder / "last.pt"
        before, now = state.get("processes", 1), distributed.world_size()
        if before != now:
            raise InputError(f"{path}: the run was trained by {before} process(es), now {now}; expected {before}")
        load_model_state(self.model, state["model"], path)
        if self.ema is not None:
            if state.get("ema") is None:
                raise InputError(
                    f"{path}: no moving average of the weights found; expected ema, as in the run's options"
                )
            load_model_state(self.scored_model, state["ema"]["model"], path)
            self.ema.updates = state["ema"]["updates"]
        load_optimizer_state(self.optimizer, state["optimizer"], path)
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.step = state["step"]
        self.validated = state.get("validated", self.epoch)  # old runs saved an epoch after its validation
        is_known = state.get("best_by") == BEST_BY and (self.folder / "best.pt").is_file()
        self.best = state["best"] if is_known else -math.inf  # old runs used another score
