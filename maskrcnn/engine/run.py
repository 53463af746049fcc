"""A training run: what it changes from step to step, and the files that keep it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from maskrcnn import distributed
from maskrcnn.checkpoint import load_model_state, save_checkpoint
from maskrcnn.errors import InputError
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS
from maskrcnn.model import MaskRCNN

BEST_BY = f"mask/AP@{MAX_DETECTIONS}"
"""The score by which ``best.pt`` is chosen."""


@dataclass
class Run:
    """What a run is, and how far it has come; all that changes is in ``last.pt``.

    Attributes:
        folder: where its files are.
        device, precision: where and in what it computes.
        description: what its checkpoints say besides the weights (:data:`maskrcnn.checkpoint.DESCRIPTION`).
        model: the network that is trained.
        network: ``model``, or what is around it to average its gradients over several processes.
        optimizer: of its weights.
        ema: the average of the weights over the steps, if there is one.
        epoch: epochs that are done.
        step_in_epoch: steps that are done of the next one.
        step: steps that are done.
        validated: epochs that were done at the last validation; -1 before one that comes ahead of all steps.
        best: the highest validation score by :data:`BEST_BY`.
    """

    folder: Path
    device: torch.device
    precision: str
    description: dict[str, Any]
    model: MaskRCNN
    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None = None
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    validated: int = 0
    best: float = -math.inf

    @property
    def scored_model(self) -> MaskRCNN:
        """The weights that validation scores and ``best.pt`` holds: the average, if there is one."""
        model = self.model if self.ema is None else self.ema.module
        assert isinstance(model, MaskRCNN)
        return model

    def save(self) -> None:
        """Write ``last.pt``, by process 0; all wait for it."""
        average = None
        if self.ema is not None:
            average = {"model": self.scored_model.state_dict(), "updates": int(self.ema.n_averaged)}
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
        """Take up what :meth:`save` wrote; raises InputError for another network or number of processes."""
        path = self.folder / "last.pt"
        before, now = state.get("processes", 1), distributed.world_size()
        if before != now:
            raise InputError(f"{path}: the run was trained by {before} process(es), and has {now} now; start {before}")
        load_model_state(self.model, state["model"], path)
        if self.ema is not None:
            load_model_state(self.scored_model, state["ema"]["model"], path)
            self.ema.n_averaged.fill_(state["ema"]["updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.step = state["step"]
        self.validated = state.get("validated", self.epoch)  # earlier runs saved an epoch after its validation
        self.best = state["best"] if state.get("best_by") == BEST_BY else -math.inf  # older runs went by another score
