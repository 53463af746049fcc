"""Training steps: what they change, how the gradients of their batches are put together, and at what learning rate."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from maskrcnn import distributed
from maskrcnn.checkpoint import load_model_state, load_optimizer_state
from maskrcnn.data.sample import Batch
from maskrcnn.device import autocast
from maskrcnn.engine.config import OptimOptions, TrainConfig
from maskrcnn.engine.ema import WeightAverage
from maskrcnn.engine.log import TOTAL
from maskrcnn.errors import InputError
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS
from maskrcnn.model import MaskRCNN

BEST_BY = f"mask/AP@{MAX_DETECTIONS}"
"""The score by which ``best.pt`` is chosen."""


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or NaN; the message names the step, the losses and the pictures."""


@dataclass
class Run:
    """What changes while a run goes on; all of it is in ``last.pt``.

    ``network`` is ``model``, or around it what averages its gradients over several processes.
    """

    model: MaskRCNN
    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: WeightAverage | None = None
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best: float = -math.inf

    @property
    def scored_model(self) -> MaskRCNN:
        """The weights that validation scores and ``best.pt`` holds: the average, if there is one."""
        return self.model if self.ema is None else self.ema.model

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.state(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "best": self.best,
            "best_by": BEST_BY,
            "processes": distributed.world_size(),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """The inverse of :meth:`state`; raises InputError for another network or number of processes."""
        before, now = state.get("processes", 1), distributed.world_size()
        if before != now:
            raise InputError(f"{path}: the run was trained by {before} process(es), and has {now} now; start {before}")
        load_model_state(self.model, state["model"], path)
        if self.ema is not None:
            if state.get("ema") is None:
                raise InputError(f"{path}: holds no average of the weights (ema), though its run keeps one")
            self.ema.restore(state["ema"], path)
        load_optimizer_state(self.optimizer, state["optimizer"], path)
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.step = state["step"]
        self.best = state["best"] if state.get("best_by") == BEST_BY else -math.inf  # older runs went by another score


def train_epoch(
    run: Run, loader: DataLoader[Batch], config: TrainConfig, device: torch.device, total_steps: int
) -> Iterator[dict[str, float]]:
    """Take the (remaining) steps of one epoch, of ``--accumulate`` batches each (the last of what is left).

    Yields a row for ``metrics.jsonl`` after each step, with the mean losses of its batches and all processes. Raises
    NonFiniteLossError, before the weights are touched and in all processes, if a loss is not finite.
    """
    optim = config.optim_options
    run.network.train()
    batches = iter(loader)
    while group := list(itertools.islice(batches, optim.accumulate)):
        lr = optim.lr * learning_rate_factor(run.step, total_steps, optim.warmup_steps)
        for parameters in run.optimizer.param_groups:
            parameters["lr"] = lr
        # The sampling of a step depends on the seed, its number and the process alone, so that a resumed run repeats
        # it (process 0 draws as a single one does: SeedSequence pads with zeros).
        entropy = [config.seed, run.step, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        row = accumulate_gradients(run, group, config.precision, device)
        if optim.clip_norm > 0:
            row["grad_norm"] = nn.utils.clip_grad_norm_(run.model.parameters(), optim.clip_norm).item()
        run.optimizer.step()
        if run.ema is not None:
            run.ema.update(run.model)
        run.step += 1
        run.step_in_epoch += 1
        yield {"step": run.step, "epoch": run.epoch + 1, "lr": lr, **row}


def accumulate_gradients(run: Run, batches: list[Batch], precision: str, device: torch.device) -> dict[str, float]:
    """Leave the mean gradient of ``batches`` (and of all processes) in the weights; returns the mean losses."""
    run.optimizer.zero_grad(set_to_none=True)
    rows = []
    for number, batch in enumerate(batches, start=1):
        with _maybe_no_sync(run.network, number < len(batches)):
            batch = batch.to(device)
            images = batch.images.contiguous(memory_format=torch.channels_last)
            with autocast(precision, device):
                losses = run.network(images, batch.sizes, batch.labels)
            loss = torch.stack(list(losses.values())).sum()
            rows.append(_joint_losses(run.step + 1, loss, losses, batch.names))
            (loss / len(batches)).backward()
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _maybe_no_sync(network: nn.Module, apart: bool) -> contextlib.AbstractContextManager[None]:
    """Inside the block, gradients stay in their process if ``apart``: those of all batches go out with the last one."""
    if apart and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


def _joint_losses(step: int, loss: Tensor, losses: dict[str, Tensor], pictures: list[str]) -> dict[str, float]:
    """The losses of all processes' pictures: their mean, for each is divided by the mean of the counts."""
    names = [TOTAL, *losses]
    own = torch.stack([loss.detach(), *(value.detach() for value in losses.values())])
    row = dict(zip(names, distributed.mean(own).tolist(), strict=True))
    if math.isfinite(row[TOTAL]):
        return row
    broken = distributed.from_all(pictures if not math.isfinite(loss.item()) else [])
    parts = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
    raise NonFiniteLossError(
        f"the loss is not finite at step {step} ({parts}) on the pictures {', '.join(itertools.chain(*broken))}"
    )


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up (Goyal et al. 2017, section 2.2), then half a cosine to 0 (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(model: nn.Module, options: OptimOptions) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD (momentum 0.9) over the weights that are trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, options.lr, momentum=0.9, weight_decay=options.weight_decay, fused=True)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, options.lr, weight_decay=options.weight_decay, fused=True)
