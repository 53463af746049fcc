"""A training run from options to a folder with weights, curves and validation scores."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from maskrcnn.data.coco import to_coco
from maskrcnn.data.sample import Batch
from maskrcnn.engine.checkpoint import load_checkpoint, load_model_state, save_checkpoint
from maskrcnn.engine.config import OptimOptions, TrainConfig
from maskrcnn.engine.datasets import Datasets, build_datasets
from maskrcnn.engine.device import autocast, choose_device, default_workers
from maskrcnn.engine.evaluate import evaluate
from maskrcnn.engine.loader import EpochSampler, build_loader
from maskrcnn.engine.log import TOTAL, MetricsLog, plot_metrics
from maskrcnn.errors import InputError, writing
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.model.weights import load_weights

BEST_BY = "mask/AP"


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or NaN; the message names the step, the losses and the pictures."""


@dataclass
class Run:
    """What changes while a run goes on; all of it is in ``last.pt``."""

    model: MaskRCNN
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best: float = -math.inf

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        load_model_state(self.model, state["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.step, self.best = state["step"], state["best"]


def train(config: TrainConfig) -> Path:
    """Train as ``config`` says and return the run folder.

    The folder holds ``config.json``, ``metrics.jsonl``, ``loss.png``, ``last.pt`` (to resume), and ``best.pt``
    (the weights of the epoch with the highest validation mask AP).

    Raises:
        InputError: for data, weights or options that cannot be used.
        NonFiniteLossError: a loss was not finite; ``last.pt`` of an earlier step is kept.
        KeyboardInterrupt: after Ctrl-C, once the step is done and ``last.pt`` is written.
    """
    saved = None
    if config.resume is not None:
        last = config.resume if config.resume.suffix == ".pt" else config.resume / "last.pt"
        saved = load_checkpoint(last)
        config = _resumed_config(config, TrainConfig.from_dict(saved["config"]), last.parent)
    config.check()
    device = choose_device(config.device)
    folder = prepare_run_folder(config)
    torch.manual_seed(config.seed)
    datasets = build_datasets(config, folder)
    model_options = _model_options(config, datasets.num_classes)
    model = mask_rcnn_resnet_fpn(**model_options)
    if config.model_options.backbone_weights is not None and saved is None:
        print(load_weights(model, config.model_options.backbone_weights, adapt=True))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(model, build_optimizer(model, config.optim_options))
    if saved is not None:
        run.restore(saved, last)
    description = {
        "config": config.to_dict(),
        "model_options": model_options,
        "percentiles": config.data_options.percentiles,
        "class_names": datasets.class_names,
    }
    _train_epochs(config, run, datasets, folder, device, description, resumed=saved is not None)
    return folder


def _train_epochs(
    config: TrainConfig,
    run: Run,
    datasets: Datasets,
    folder: Path,
    device: torch.device,
    description: dict[str, Any],
    resumed: bool,
) -> None:
    log = MetricsLog(folder / "metrics.jsonl", resume_step=run.step if resumed else None)
    sampler = EpochSampler(datasets.repeat_factors, config.optim_options.batch_size, config.seed)
    workers = config.data_options.workers
    loader = build_loader(datasets.train, sampler, default_workers(device) if workers is None else workers, device)
    epochs = config.optim_options.epochs
    total_steps = epochs * len(sampler)
    truth = to_coco(datasets.val)
    title = f"{folder.name}: mask loss {config.model_options.mask_loss}"

    def save() -> None:
        save_checkpoint(folder / "last.pt", {**run.state(), **description})

    with stop_after_step() as stop:
        while run.epoch < epochs:
            sampler.set_epoch(run.epoch, run.step_in_epoch)
            with tqdm(total=len(sampler), initial=run.step_in_epoch, desc=f"epoch {run.epoch + 1}/{epochs}") as bar:
                for row in train_epoch(run, loader, config, device, total_steps):
                    log.write(row)
                    bar.set_postfix(loss=f"{row[TOTAL]:.3f}", lr=f"{row['lr']:.1e}", refresh=False)
                    bar.update()
                    if stop.requested:
                        break
                    if run.step % config.save_every == 0:
                        save()
            if stop.requested:
                save()
                print(f"stopped after step {run.step}; go on with: python train.py --resume {folder}", file=sys.stderr)
                raise KeyboardInterrupt
            run.epoch, run.step_in_epoch = run.epoch + 1, 0
            if run.epoch % config.val_every == 0 or run.epoch == epochs:
                metrics = evaluate(run.model, datasets.val, device, truth)
                log.write({"step": run.step, "epoch": run.epoch, **metrics})
                print_validation(run.epoch, metrics, run.model.detections_per_image)
                if metrics[BEST_BY] >= run.best:
                    run.best = metrics[BEST_BY]
                    weights = {"model": run.model.state_dict(), "step": run.step, "metrics": metrics}
                    save_checkpoint(folder / "best.pt", {**weights, **description})
            save()
            plot_metrics(log.rows, folder / "loss.png", title)


def train_epoch(
    run: Run, loader: DataLoader[Batch], config: TrainConfig, device: torch.device, total_steps: int
) -> Iterator[dict[str, float]]:
    """Take the (remaining) steps of one epoch; yields a row for ``metrics.jsonl`` after each.

    Raises NonFiniteLossError, before the weights are touched, if a loss is not finite.
    """
    optim = config.optim_options
    run.model.train()
    for batch in loader:
        lr = optim.lr * learning_rate_factor(run.step, total_steps, optim.warmup_steps)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        # the sampling of a step depends on the seed and its number alone, so that a resumed run repeats it
        torch.manual_seed(int(np.random.SeedSequence([config.seed, run.step]).generate_state(1)[0]))
        batch = batch.to(device)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with autocast(config.precision, device):
            losses = run.model(images, batch.sizes, batch.labels)
        loss = torch.stack(list(losses.values())).sum()
        row = {TOTAL: loss.item(), **{name: value.item() for name, value in losses.items()}}
        if not math.isfinite(row[TOTAL]):
            parts = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            raise NonFiniteLossError(
                f"the loss is not finite at step {run.step + 1} ({parts}) on the pictures {', '.join(batch.names)}"
            )
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if optim.clip_norm > 0:
            row["grad_norm"] = nn.utils.clip_grad_norm_(run.model.parameters(), optim.clip_norm).item()
        run.optimizer.step()
        run.step += 1
        run.step_in_epoch += 1
        yield {"step": run.step, "epoch": run.epoch + 1, "lr": lr, **row}


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


def prepare_run_folder(config: TrainConfig) -> Path:
    """Create the run folder and write ``config.json``; raises InputError where that is not possible."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{config.model_options.mask_loss}"
    folder = config.out if config.out is not None else Path("runs") / name
    if config.resume is None and (folder / "last.pt").exists():
        raise InputError(f"--out {folder}: holds a run already; go on with --resume {folder} or name another folder")
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    contents = {**config.to_dict(), "command": sys.argv, "versions": versions}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(contents, indent=2) + "\n")
    return folder


def print_validation(epoch: int, metrics: dict[str, float], limit: int) -> None:
    classes = ", ".join(
        f"{key.rsplit('/', 1)[1]} {value:.3f}" for key, value in metrics.items() if key.startswith("mask/AP50/class")
    )
    at_limit = f" (AP {metrics[f'mask/AP@{limit}']:.3f} at {limit} detections)" if f"mask/AP@{limit}" in metrics else ""
    print(
        f"validation after epoch {epoch}: mask AP {metrics['mask/AP']:.3f}, AP50 {metrics['mask/AP50']:.3f}, "
        f"AP75 {metrics['mask/AP75']:.3f} at 100 detections{at_limit}; AP50 by class: {classes}",
        flush=True,
    )


class _Stop:
    requested = False


@contextmanager
def stop_after_step() -> Iterator[_Stop]:
    """Inside the block the first Ctrl-C only sets ``requested``; a second one interrupts at once."""
    stop = _Stop()

    def handler(signum: int, frame: object) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _resumed_config(now: TrainConfig, saved: TrainConfig, folder: Path) -> TrainConfig:
    """The saved options, with the run folder, device and workers of this call."""
    data = dataclasses.replace(saved.data_options, workers=now.data_options.workers)
    if data.data is None and (folder / "synthetic").is_dir():
        data = dataclasses.replace(data, data=folder / "synthetic")
    return dataclasses.replace(saved, data_options=data, out=folder, resume=folder, device=now.device)


def _model_options(config: TrainConfig, num_classes: int) -> dict[str, Any]:
    """Arguments of :func:`mask_rcnn_resnet_fpn`, all of plain types, as they go into the checkpoint."""
    options = config.model_options
    norm = options.norm
    if norm == "auto":
        norm = "frozen_batch" if options.backbone_weights is not None else "group"
    return {
        "depth": options.depth,
        "num_classes": num_classes,
        "norm": norm,
        "stride_in_1x1": options.stride_in_1x1,
        "anchor_sizes": config.anchor_sizes(),
        "anchor_ratios": options.anchor_ratios,
        "detections_per_image": options.detections_per_image,
        "rpn_batch_per_image": options.rpn_batch_per_image,
        "roi_batch_per_image": options.roi_batch_per_image,
        "roi_positive_fraction": options.roi_positive_fraction,
        "mask_loss": options.mask_loss,
        "tversky_alpha": options.tversky_alpha,
        "tversky_beta": options.tversky_beta,
    }
