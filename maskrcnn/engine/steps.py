"""A training step: losses, gradients, and the update of the weights."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn import distributed
from maskrcnn.data.sample import Batch
from maskrcnn.device import autocast
from maskrcnn.engine.config import OptimOptions
from maskrcnn.engine.log import TOTAL
from maskrcnn.engine.run import Run

GRAD_NORM = "grad_norm"


class NonFiniteLossError(RuntimeError):
    """Raised for an infinite or NaN loss or gradient; the message names the step, the losses and the pictures."""


def train_step(run: Run, batches: Sequence[Batch], lr: float, clip_norm: float) -> dict[str, float]:
    """Update the weights once, with the mean gradient of the batches and of all processes.

    Args:
        run: its weights, moving average, optimizer and step count are updated.
        batches: the batches of this process, which go through the network one after the other.
        lr: learning rate.
        clip_norm: maximum norm of the gradient, to which larger ones are scaled; 0: no clipping.

    Returns:
        The losses by name and their sum (``loss``), averaged over batches and processes, and the norm of the gradient
        (``grad_norm``).

    Raises:
        NonFiniteLossError: in all processes, before the weights are updated.
    """
    for parameters in run.optimizer.param_groups:
        parameters["lr"] = lr * parameters.get("lr_factor", 1.0)
    run.optimizer.zero_grad(set_to_none=True)
    rows = []
    for number, batch in enumerate(batches, start=1):
        batch = batch.to(run.device, non_blocking=True)  # from page-locked memory: build_loader
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with _maybe_no_sync(run.network, number < len(batches)):
            with autocast(run.precision, run.device):
                losses = run.network(images, batch.sizes, batch.labels)
            loss = torch.stack(list(losses.values())).sum()
            (loss / len(batches)).backward()
        rows.append(torch.stack([loss, *losses.values()]).detach())
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), clip_norm or math.inf)
    local = torch.stack(rows).mean(0)
    values = torch.cat([distributed.mean(local), norm[None]]).tolist()
    row = dict(zip([TOTAL, *losses, GRAD_NORM], values, strict=True))
    if not all(map(math.isfinite, values)):
        raise NonFiniteLossError(_not_finite_message(run.step + 1, row, local, batches))
    run.optimizer.step()
    if run.ema is not None:
        run.ema.update(run.model)
    run.step += 1
    return row


def _maybe_no_sync(network: nn.Module, no_sync: bool) -> contextlib.AbstractContextManager[None]:
    """Context without synchronization of gradients if ``no_sync``: they are synchronized with the last batch only."""
    if no_sync and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


def _not_finite_message(step: int, row: dict[str, float], local: Tensor, batches: Sequence[Batch]) -> str:
    """The message of NonFiniteLossError, with the pictures of the processes whose loss is not finite, or of all
    processes if only the gradient is not."""
    what = "gradient" if math.isfinite(row[TOTAL]) else "loss"
    pictures = [name for batch in batches for name in batch.names]
    all_pictures = distributed.from_all(pictures if what == "gradient" or not local.isfinite().all() else [])
    parts = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
    return (
        f"the {what} is not finite at step {step} ({parts}) on the pictures {', '.join(itertools.chain(*all_pictures))}"
    )


def seed_step(seed: int, step: int) -> None:
    """Seed PyTorch's generator for the sampling of one step with the run's seed, the step and the rank, so that a
    resumed run repeats it (rank 0 has the same numbers as a single process: SeedSequence pads with zeros)."""
    entropy = [seed, step, distributed.rank()]
    torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up (Goyal et al. 2017, section 2.2), then half a cosine to 0 (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


CLASSIFIER_LR_FACTOR = 10.0
"""Factor of the classifier's learning rate for classes that the network does not know yet. They start as copies of one
class, whose features hardly tell them apart; the other layers must not lose what they know."""


def build_optimizer(model: nn.Module, options: OptimOptions, new_classes: bool = False) -> torch.optim.Optimizer:
    """Build Adam, AdamW or SGD (momentum 0.9) for the weights that require gradients.

    ``new_classes``: it is fine-tuned for other classes, and its classifier learns :data:`CLASSIFIER_LR_FACTOR` times as
    fast.
    """
    parameters: list[Any] = [p for p in model.parameters() if p.requires_grad]
    if new_classes:
        classifier = {id(p) for p in model.get_submodule("box_head.cls_score").parameters()}
        parameters = [
            {"params": [p for p in parameters if id(p) not in classifier]},
            {"params": [p for p in parameters if id(p) in classifier], "lr_factor": CLASSIFIER_LR_FACTOR},
        ]
    lr = options.lr or 0.0  # train_step sets that of each step
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=options.weight_decay, fused=True)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr, weight_decay=options.weight_decay, fused=True)
