"""Training: from options to a run folder with weights, curves and validation scores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.checkpoint import load_checkpoint, versions
from maskrcnn.device import choose_device, default_workers
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.curves import CURVES, plot_metrics
from maskrcnn.engine.datasets import Datasets, build_datasets
from maskrcnn.engine.ema import MovingAverage
from maskrcnn.engine.loader import EpochSampler, batches, build_loader
from maskrcnn.engine.log import TOTAL, MetricsLog
from maskrcnn.engine.resume import check_pictures, check_resumed, last_checkpoint
from maskrcnn.engine.run import Run
from maskrcnn.engine.start import adopt_start, choose_model_options, choose_schedule, load_start
from maskrcnn.engine.steps import build_optimizer, learning_rate_factor, seed_step, train_step
from maskrcnn.engine.stop import Stop, stop_on_signals
from maskrcnn.engine.validation import fit_best, validate
from maskrcnn.errors import InputError, writing
from maskrcnn.files import lock_folder, new_folder, to_json, write_text
from maskrcnn.model import mask_rcnn_resnet_fpn


def train(config: TrainConfig) -> Path:
    """Train a network with the options ``config`` and return the run folder.

    The folder contains ``config.json``, ``metrics.jsonl``, ``loss.png``, ``training.html`` (the curves, and the last
    validation's pictures), ``last.pt`` (to resume), ``best.pt`` (the weights of the epoch with the highest validation
    mask AP; with ``--ema`` their average), and the last epoch's ``precision_recall.png``, ``classes.png`` and
    ``thresholds.json``. With torchrun, all processes must have access to the same folder and data; only process 0
    writes.

    Args:
        config: the options; for a resumed run from :func:`maskrcnn.engine.resume.run_config`.

    Raises:
        InputError: data, weights or options are invalid.
        NonFiniteLossError: a loss or gradient was not finite; ``last.pt`` of an earlier step is kept.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, when the step is done and ``last.pt`` is written.
    """
    saved = None
    if config.resume is not None:
        saved = load_checkpoint(last_checkpoint(config.resume), to_resume=True)
        check_resumed(config, saved)
    elif config.from_ is not None:
        config = adopt_start(config)
    config.check()
    device = choose_device(config.device)
    with distributed.processes(device), torch.random.fork_rng(), stop_on_signals() as stop, ExitStack() as stack:
        torch.manual_seed(config.seed)
        folder = distributed.from_main(lambda: run_folder(config))
        distributed.from_main(lambda: stack.enter_context(lock_folder(folder, "train")))
        datasets = build_datasets(config, folder, None if saved is None else saved.get("pictures"))
        sampler = build_sampler(config, datasets)
        run, config = start_run(config, datasets, len(sampler), device, folder, saved)
        distributed.from_main(lambda: write_config(config, folder))
        done = None if saved is None else (run.step, run.validated)
        log = stack.enter_context(closing(distributed.from_main(lambda: MetricsLog(folder / "metrics.jsonl", done))))
        train_epochs(run, config, datasets, sampler, log, stop)
    return folder


def start_run(
    config: TrainConfig,
    datasets: Datasets,
    batches: int,
    device: torch.device,
    folder: Path,
    saved: dict[str, Any] | None,
) -> tuple[Run, TrainConfig]:
    """A new run of epochs of ``batches``, or one restored from the contents ``saved`` of its ``last.pt``.

    Returns the options as well, with values for those that are None.
    """
    options = choose_model_options(config, datasets.num_classes, saved)
    if distributed.world_size() > 1 and options["norm"] == "batch":
        raise InputError(
            "--norm is batch; expected group or frozen_batch with several processes, whose batch statistics differ"
        )
    model = mask_rcnn_resnet_fpn(**options)
    new_classes = load_start(model, config) if saved is None else bool(saved.get("new_classes"))
    config = choose_schedule(config, batches, new_classes)
    optim = config.optim_options
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(
        folder,
        device,
        config.precision,
        {
            "config": config.to_dict(),
            "model_options": options,
            "percentiles": config.data_options.percentiles,
            "channels": config.data_options.channels,
            "diameter": config.data_options.canonical_diameter(),
            "resize": config.data_options.resize,
            "class_names": datasets.class_names,
            "category_ids": datasets.category_ids,
            "new_classes": new_classes,
            "pictures": {"train": datasets.train.names, "val": datasets.val.names},
        },
        model,
        distributed.data_parallel(model, device),
        build_optimizer(model, optim, new_classes),
        None if optim.ema is None else MovingAverage(model, optim.ema),
        validated=0 if config.from_ is None else -1,
    )
    if saved is not None:
        check_pictures(run.description["pictures"], saved, f"--resume {folder}")
        run.restore(saved)
    return run, config


def build_sampler(config: TrainConfig, datasets: Datasets) -> EpochSampler:
    batch_size, rank, world_size = config.optim_options.batch_size, distributed.rank(), distributed.world_size()
    return EpochSampler(datasets.repeat_factors, batch_size, config.seed, rank, world_size)


def train_epochs(
    run: Run, config: TrainConfig, datasets: Datasets, sampler: EpochSampler, log: MetricsLog, stop: Stop
) -> None:
    """Train, validate and save until all epochs are done or ``stop`` is requested."""
    optim, main = config.optim_options, distributed.is_main()
    assert optim.epochs is not None  # after choose_schedule
    assert optim.lr is not None
    assert config.val_every is not None
    workers = config.data_options.workers
    workers = default_workers(run.device) if workers is None else workers
    loader = build_loader(datasets.train, sampler, workers, run.device)
    steps_per_epoch = -(-len(sampler) // optim.accumulate)
    title = f"{run.folder.name}: mask loss {config.model_options.mask_loss}"
    while True:
        last = run.epoch >= optim.epochs
        if run.validated < run.epoch and (run.epoch % config.val_every == 0 or last):
            run.save()  # the validation takes minutes
            validate(run, datasets, log, title, plots=last)
            run.save()
        if last:
            break
        run.network.train()  # validation sets evaluation mode
        sampler.set_epoch(run.epoch, run.step_in_epoch * optim.accumulate)
        name = f"epoch {run.epoch + 1}/{optim.epochs}"
        bar = tqdm(total=steps_per_epoch, initial=run.step_in_epoch, desc=name, disable=not main)
        with bar, closing(batches(loader, optim.accumulate)) as groups, _saved_if_unreadable(run):
            for group in groups:
                _stop_if_requested(run, stop)
                seed_step(config.seed, run.step)
                lr = optim.lr * learning_rate_factor(run.step, optim.epochs * steps_per_epoch, optim.warmup_steps)
                row = train_step(run, group, lr, optim.clip_norm)
                run.step_in_epoch += 1
                if main:
                    log.write({"step": run.step, "epoch": run.epoch + 1, "lr": lr, **row})
                bar.set_postfix(loss=f"{row[TOTAL]:.3f}", lr=f"{lr:.1e}", refresh=False)
                bar.update()
                if run.step % config.save_every == 0:
                    run.save()
                    if main:
                        plot_metrics(log.rows, run.folder / CURVES, title)
        run.epoch, run.step_in_epoch = run.epoch + 1, 0
    fit_best(run, datasets)


def _stop_if_requested(run: Run, stop: Stop) -> None:
    """Save and raise KeyboardInterrupt if a stop was requested in any process."""
    if not distributed.any_process(stop.requested):
        return
    _save_to_resume(run)
    raise KeyboardInterrupt


@contextmanager
def _saved_if_unreadable(run: Run) -> Iterator[None]:
    """Save the run if a picture cannot be read any more, so that no step is lost. Of several processes, the others do
    not know of it and cannot save."""
    try:
        yield
    except InputError:
        if distributed.world_size() == 1:
            _save_to_resume(run)
        raise


def _save_to_resume(run: Run) -> None:
    run.save()
    if distributed.is_main():
        hint = f"stopped after step {run.step}; resume with: python train.py --resume {run.folder}"
        tqdm.write(hint, file=sys.stderr)


def run_folder(config: TrainConfig) -> Path:
    """The run's folder, which is created if it is missing; raises InputError if that is not possible."""
    if config.out is None:
        return new_folder(Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{config.model_options.mask_loss}")
    if config.resume is None and (config.out / "last.pt").exists():
        raise InputError(
            f"--out {config.out}: holds a run already; continue it with --resume {config.out}, or choose another folder"
        )
    with writing(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
    return config.out


def write_config(config: TrainConfig, folder: Path) -> None:
    """Write ``config.json`` with the options, the command and the versions."""
    contents = {**config.to_dict(), "command": sys.argv, "versions": versions()}
    write_text(folder / "config.json", to_json(contents, indent=2) + "\n")
