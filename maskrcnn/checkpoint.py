"""Checkpoints: files that are whole or not there, and read without running any code of theirs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from maskrcnn import pretrained
from maskrcnn.errors import InputError
from maskrcnn.files import atomic_write
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.model.weights import key_mismatches, read_safetensors

FORMAT = "maskrcnn-checkpoint-1"

DESCRIPTION = (
    "config",
    "model_options",
    "percentiles",
    "diameter",
    "resize",
    "class_names",
    "category_ids",
    "thresholds",
    "step",
    "metrics",
)
"""What a checkpoint says besides its weights, all of plain types."""

_FOREIGN = "{}: not a checkpoint of train.py; weights of other programs go to train.py --backbone-weights"


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


def pack_checkpoint(contents: dict[str, Any], path: Path) -> None:
    """Write what prediction and fine-tuning need of a checkpoint as a safetensors file, weights in bfloat16.

    It is half as large as ``best.pt``, and is loaded likewise (:func:`load_checkpoint`). Raises InputError where it
    cannot be written.
    """
    from safetensors.torch import save_file

    state = {
        key: (value.to(torch.bfloat16) if value.is_floating_point() else value).contiguous()
        for key, value in weights_of(contents).items()
    }
    described = {key: contents[key] for key in DESCRIPTION if key in contents}
    if "config" in described:
        described["config"] = _without_paths(described["config"])
    description = json.dumps(described)
    with atomic_write(path) as beside:
        save_file(state, beside, {"format": FORMAT, "description": description})
        beside.chmod(0o644)  # safetensors leaves it to its owner alone


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a run without the places of its files, which mean nothing elsewhere.

    Of the folders with its data the names stay.
    """
    places: dict[str, Any] = dict.fromkeys(("image_root", "backbone_weights", "out", "resume", "from_"))
    places |= {key: [Path(path).name for path in config.get(key) or ()] for key in ("data", "val")}
    cleared = {key: _without_paths(value) if isinstance(value, dict) else value for key, value in config.items()}
    return cleared | {key: value for key, value in places.items() if key in config}


def load_checkpoint(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU, without running any code of the file's.

    Args:
        source: a file that :func:`save_checkpoint` or :func:`pack_checkpoint` wrote, or the name of a model that comes
            with the package (:mod:`maskrcnn.pretrained`).

    Raises:
        InputError: the file is missing, damaged or something else.
    """
    path = locate(source)
    if not path.is_file():
        known = f"; models by name: {', '.join(pretrained.names())}" if pretrained.names() else ""
        raise InputError(f"{source}: no such checkpoint{known}")
    if path.suffix == ".safetensors":
        return _load_packed(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler has all kinds of exceptions for a file that is none
        raise InputError(f"{path}: not a checkpoint that can be read ({type(error).__name__})") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise InputError(_FOREIGN.format(path))
    return contents


def locate(source: str | os.PathLike[str]) -> Path:
    """The file of a checkpoint that is given by its path, or by the name of a model that comes with the package."""
    path = Path(source)
    if not path.is_file() and (found := pretrained.find(str(source))) is not None:
        return found
    return path


def _load_packed(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        state, metadata = read_safetensors(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a checkpoint that can be read ({type(error).__name__})") from error
    if metadata.get("format") != FORMAT:
        raise InputError(_FOREIGN.format(path))
    weights = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return {"model": weights, **json.loads(metadata["description"])}


def build_model(contents: dict[str, Any], path: Path) -> MaskRCNN:
    """The network that a checkpoint describes, with its weights; ``path`` is for the error message.

    A checkpoint that does not say whether its network is ``aligned`` was written when none was. Raises InputError where
    the weights are of another architecture or class count than the description says.
    """
    model = mask_rcnn_resnet_fpn(**_model_arguments({"aligned": False} | contents["model_options"]))
    load_model_state(model, weights_of(contents), path)
    return model


def weights_of(contents: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint that predict: in ``last.pt`` of a run with ``--ema`` their average, as in
    ``best.pt``."""
    average = contents.get("ema")
    return contents["model"] if average is None else average["model"]


def load_model_state(model: MaskRCNN, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load a state dict whose every key and shape must fit; raises InputError that names those that do not."""
    if wrong := key_mismatches(state, model.state_dict()):
        raise InputError(f"{path}: weights of another architecture or class count: {wrong}")
    model.load_state_dict(state)


def _model_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Lists back to tuples: checkpoints hold plain types."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value

    return {key: tuples(value) for key, value in options.items()}
