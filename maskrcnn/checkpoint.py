"""Checkpoints: files that are whole or not there, and read without running any code of theirs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.model.weights import misfits

FORMAT = "maskrcnn-checkpoint-1"


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write ``contents`` (tensors and plain types) to ``path``: beside it first, then renamed over it.

    A run that is killed while it writes leaves the earlier file as it was. Raises InputError where the file cannot be
    written (no space, no permission).
    """
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            torch.save({"format": FORMAT, **contents}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        beside.unlink(missing_ok=True)
        raise InputError(f"{path}: the checkpoint could not be written: {error}") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that :func:`save_checkpoint` wrote, tensors on the CPU, with ``weights_only=True``.

    Raises InputError where the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a checkpoint that can be read ({type(error).__name__})") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of train.py; weights of other programs go to train.py --backbone-weights"
        )
    return contents


def build_model(contents: dict[str, Any], path: Path) -> MaskRCNN:
    """The network that a checkpoint describes, with its weights; ``path`` is for the error message.

    A checkpoint that does not say whether its network is ``aligned`` was written when none was. Raises InputError where
    the weights are of another architecture or class count than the description says.
    """
    model = mask_rcnn_resnet_fpn(**_model_arguments({"aligned": False} | contents["model_options"]))
    load_model_state(model, contents["model"], path)
    return model


def load_model_state(model: MaskRCNN, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load a state dict whose every key and shape must fit; raises InputError that names those that do not."""
    if wrong := misfits(state, model.state_dict()):
        raise InputError(f"{path}: weights of another architecture or class count: {wrong}")
    model.load_state_dict(state)


def _model_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Lists back to tuples: checkpoints hold plain types."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value

    return {key: tuples(value) for key, value in options.items()}
