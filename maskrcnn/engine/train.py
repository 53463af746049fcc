"""A training run from options to a folder with weights, curves and validation scores."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn.data.coco import to_coco
from maskrcnn.device import choose_device, default_workers, keep_freed_memory
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.curves import plot_metrics
from maskrcnn.engine.datasets import Datasets, build_datasets
from maskrcnn.engine.ema import WeightAverage
from maskrcnn.engine.loader import EpochSampler, build_loader
from maskrcnn.engine.log import TOTAL, MetricsLog
from maskrcnn.engine.start import adopt_start, choose_model_options, load_start
from maskrcnn.engine.steps import Run, build_optimizer, train_epoch
from maskrcnn.engine.validation import choose_thresholds, validate
from maskrcnn.errors import InputError, writing
from maskrcnn.model import mask_rcnn_resnet_fpn


def train(config: TrainConfig) -> Path:
    """Train as ``config`` says and return the run folder.

    The folder holds ``config.json``, ``metrics.jsonl``, ``loss.png``, ``last.pt`` (to resume), ``best.pt`` (the weights
    of the epoch with the highest validation mask AP; with ``--ema`` their average), and the last epoch's
    ``precision_recall.png``, ``classes.png`` and ``thresholds.json``. Processes that torchrun started train together;
    all must see the same folder and data, and process 0 alone writes.

    Raises:
        InputError: for data, weights or options that cannot be used.
        NonFiniteLossError: a loss was not finite; ``last.pt`` of an earlier step is kept.
        KeyboardInterrupt: after Ctrl-C, once the step is done and ``last.pt`` is written.
    """
    saved, last = None, None
    if config.resume is not None:
        last = config.resume if config.resume.suffix == ".pt" else config.resume / "last.pt"
        saved = load_checkpoint(last)
        config = _resumed_config(config, TrainConfig.from_dict(saved["config"]), last.parent)
    elif config.from_ is not None:
        config = adopt_start(config)
    config.check()
    device = choose_device(config.device)
    with distributed.processes(device):
        return _train(config, device, saved, last)


def _train(config: TrainConfig, device: torch.device, saved: dict[str, Any] | None, last: Path | None) -> Path:
    """:func:`train` once the processes are joined; from the contents ``saved`` of the file ``last``, if given."""
    folder = distributed.from_main(lambda: prepare_run_folder(config))
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    datasets = build_datasets(config, folder)
    model_options = choose_model_options(config, datasets.num_classes, saved)
    if distributed.world_size() > 1 and model_options["norm"] == "batch":
        raise InputError(
            "--norm is batch; expected group or frozen_batch with several processes, which see other pictures"
        )
    model = mask_rcnn_resnet_fpn(**model_options)
    if saved is None:
        load_start(model, config)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optim = config.optim_options
    run = Run(
        model,
        distributed.data_parallel(model, device),
        build_optimizer(model, optim),
        None if optim.ema is None else WeightAverage(model, optim.ema),
    )
    if saved is not None and last is not None:
        run.restore(saved, last)
    description = {
        "config": config.to_dict(),
        "model_options": model_options,
        "percentiles": config.data_options.percentiles,
        "diameter": config.data_options.canonical_diameter(),
        "resize": config.data_options.resize,
        "class_names": datasets.class_names,
        "category_ids": datasets.category_ids,
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
    optim, main = config.optim_options, distributed.is_main()
    log = distributed.from_main(
        lambda: MetricsLog(folder / "metrics.jsonl", (run.step, run.epoch) if resumed else None)
    )
    sampler = EpochSampler(
        datasets.repeat_factors, optim.batch_size, config.seed, distributed.rank(), distributed.world_size()
    )
    workers = config.data_options.workers
    loader = build_loader(datasets.train, sampler, default_workers(device) if workers is None else workers, device)
    steps = -(-len(sampler) // optim.accumulate)
    truth = to_coco(datasets.val) if main else {}
    title = f"{folder.name}: mask loss {config.model_options.mask_loss}"

    def save() -> None:
        contents = {**run.state(), **description}
        distributed.from_main(lambda: save_checkpoint(folder / "last.pt", contents))

    with stop_after_step() as stop:
        if config.from_ is not None and not resumed:
            validate(run, datasets, folder, device, description, log, truth, None, config.precision)
        while run.epoch < optim.epochs:
            sampler.set_epoch(run.epoch, run.step_in_epoch * optim.accumulate)
            stopping = False
            name = f"epoch {run.epoch + 1}/{optim.epochs}"
            with tqdm(total=steps, initial=run.step_in_epoch, desc=name, disable=not main) as bar:
                for row in train_epoch(run, loader, config, device, optim.epochs * steps):
                    if main:
                        log.write(row)
                    bar.set_postfix(loss=f"{row[TOTAL]:.3f}", lr=f"{row['lr']:.1e}", refresh=False)
                    bar.update()
                    stopping = distributed.any_process(stop.requested, device)
                    if stopping:
                        break
                    if run.step % config.save_every == 0:
                        save()
            if stopping:
                save()
                if main:
                    hint = f"stopped after step {run.step}; go on with: python train.py --resume {folder}"
                    print(hint, file=sys.stderr)
                raise KeyboardInterrupt
            run.epoch, run.step_in_epoch = run.epoch + 1, 0
            if run.epoch % config.val_every == 0 or run.epoch == optim.epochs:
                plots = folder if run.epoch == optim.epochs else None
                validate(run, datasets, folder, device, description, log, truth, plots, config.precision)
            save()
            if run.epoch == optim.epochs:
                choose_thresholds(folder, datasets, device, truth, config.precision)
            if main:
                plot_metrics(log.rows, folder / "loss.png", title)


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


class _Stop:
    requested = False


@contextmanager
def stop_after_step() -> Iterator[_Stop]:
    """Inside the block the first Ctrl-C only sets ``requested``; a second one interrupts at once.

    With several processes all that come only set it: the terminal and torchrun may both send one, and a process that
    stops at once leaves the others waiting. torchrun ends processes that take more than 30 seconds.
    """
    stop = _Stop()

    def handler(signum: int, frame: object) -> None:
        stop.requested = True
        if distributed.world_size() == 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _resumed_config(now: TrainConfig, saved: TrainConfig, folder: Path) -> TrainConfig:
    """The saved options, with the run folder, device and workers of this call."""
    data = dataclasses.replace(saved.data_options, workers=now.data_options.workers)
    if not data.data and (folder / "synthetic").is_dir():
        data = dataclasses.replace(data, data=(folder / "synthetic",))
    return dataclasses.replace(saved, data_options=data, out=folder, resume=folder, device=now.device)
