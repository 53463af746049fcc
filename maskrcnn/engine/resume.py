"""Resuming a run: which options may change, and whether its pictures are still the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.data.split import split_changes
from maskrcnn.engine.config import TrainConfig
from maskrcnn.errors import InputError

CHANGEABLE = frozenset(
    ("epochs", "data", "val", "image_root", "workers", "cache_gb", "device", "precision", "val_every", "save_every")
)
"""Options that may change when a run is resumed. Changing the epochs changes the learning rate schedule from there on.
Data and validation folders may have moved; their pictures are compared."""


def last_checkpoint(resume: Path) -> Path:
    """The checkpoint of ``--resume``: ``last.pt`` of a run folder, or that file itself."""
    return resume if resume.suffix == ".pt" else resume / "last.pt"


def run_config(resume: Path) -> TrainConfig:
    """The options of a run that is to be resumed, as defaults for the command line.

    Args:
        resume: its folder (which may have moved), or ``last.pt`` in it.

    Raises:
        InputError: there is no valid checkpoint.
    """
    last = last_checkpoint(resume)
    config = TrainConfig.from_dict(load_checkpoint(last)["config"])
    synthetic = last.parent / "synthetic"
    if not config.data_options.data and synthetic.is_dir():
        config = dataclasses.replace(config, data_options=dataclasses.replace(config.data_options, data=(synthetic,)))
    return dataclasses.replace(config, out=last.parent, resume=resume)


def check_resumed(config: TrainConfig, saved: dict[str, Any]) -> None:
    """Raise InputError for options that differ from those in the run's checkpoint ``saved`` and are not
    :data:`CHANGEABLE`, for another folder than the run's, and for fewer epochs than are done."""
    assert config.resume is not None
    folder = last_checkpoint(config.resume).parent
    if config.out is None or config.out.resolve() != folder.resolve():
        raise InputError(f"--out is {config.out}; expected none with --resume: the run goes on in its folder, {folder}")
    now, before = _options(config), _options(TrainConfig.from_dict(saved["config"]))
    changed = [name for name in now if now[name] != before[name] and name not in CHANGEABLE]
    if changed:
        names = {name: name.rstrip("_").replace("_", "-") for name in changed}  # --from is from_ in Python
        changes = ", ".join(f"--{names[name]} from {before[name]} to {now[name]}" for name in changed)
        raise InputError(f"--resume {config.resume}: the run cannot continue with other options: {changes}")
    epochs = config.optim_options.epochs
    if epochs is not None and epochs < saved["epoch"]:
        raise InputError(f"--epochs is {epochs}; expected at least {saved['epoch']}, which the run has done")


def _options(config: TrainConfig) -> dict[str, Any]:
    """All options by name, except for the location of the run."""
    options: dict[str, Any] = {}
    for name, value in vars(config).items():
        options |= vars(value) if dataclasses.is_dataclass(value) else {name: value}
    return {name: value for name, value in options.items() if name not in ("out", "resume")}


def check_pictures(now: dict[str, list[str]], saved: dict[str, Any], run: str) -> None:
    """Raise InputError if the training or validation pictures changed: training pictures would be used for validation.

    Args:
        now: the names of the pictures, by ``train`` and ``val``.
        saved: the contents of ``last.pt``; old runs without names are not checked.
        run: the run, for the message.
    """
    before = saved.get("pictures")
    if before is None or before == now:
        return
    changes = split_changes((before["train"], before["val"]), (now["train"], now["val"])) or "their order changed"
    raise InputError(f"{run}: the pictures changed since the run started: {changes}")
