"""Checkpoints: written as a whole or not at all, and checked when they are read, without running code from them."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from maskrcnn import __version__, pretrained
from maskrcnn.errors import InputError
from maskrcnn.files import atomic_write, to_json
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.model.weight_files import DIGEST, State, digest, is_weight, read_file
from maskrcnn.model.weights import key_mismatches
from maskrcnn.options import Fraction, Percentile, Range, check_arguments, check_value

FORMAT = "maskrcnn-checkpoint-1"

DESCRIPTION = (
    "config",
    "model_options",
    "percentiles",
    "channels",
    "diameter",
    "resize",
    "class_names",
    "category_ids",
    "thresholds",
    "step",
    "metrics",
    "versions",
)
"""Entries of a checkpoint that describe its weights, all of plain types."""

_Count = Annotated[int, Range(0, 2**63 - 1)]
_ENTRIES: dict[str, Any] = {
    "model_options": dict[str, Any],
    "config": dict[str, Any],
    "percentiles": tuple[Percentile, Percentile] | None,
    "resize": Annotated[int, Range(32, 16384, multiple_of=32)] | None,
    "category_ids": tuple[Annotated[int, Range(0, 2**63 - 1)], ...] | None,
    "channels": tuple[Annotated[int, Range(0, 65535)], ...] | None,
    "diameter": Annotated[float, Range(0, 1_000_000, open_low=True)] | None,
    "class_names": tuple[str, ...],
    "thresholds": dict[
        Literal["score_threshold", "mask_threshold", "overlap_factor", "min_score"], Fraction | tuple[Fraction, ...]
    ],  # min_score: earlier name of score_threshold
    "metrics": dict[str, Any],
    "ema": dict[str, Any] | None,
    "optimizer": dict[str, Any],
    "epoch": _Count,
    "step_in_epoch": _Count,
    "step": _Count,
    "validated": Annotated[int, Range(-1, 2**62)],
    "pictures": dict[Literal["train", "val"], list[str]],
    "processes": Annotated[int, Range(1, 1_000_000)],
}
_OPTIMIZER_STATE: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}
"""The state that each optimizer keeps per weight; all entries but ``step`` have the weight's shape."""
_REQUIRED = ("model", "model_options", "config", "percentiles", "class_names")
_REQUIRED_TO_RESUME = ("optimizer", "epoch", "step_in_epoch", "step", "best")


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on; stored in every file of weights or results."""
    return {
        "maskrcnn": __version__,
        "torch": str(torch.__version__),  # a subclass of str, which weights_only refuses
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write ``contents`` (tensors and plain types) and the current :func:`versions` to ``path``.

    A run that is killed while writing leaves the earlier file unchanged (:func:`maskrcnn.files.atomic_write`). Raises
    InputError if the file cannot be written (no space, no permission).
    """
    with atomic_write(path) as beside, open(beside, "wb") as file:
        try:
            torch.save({"format": FORMAT, "versions": versions(), **contents}, file)
        except RuntimeError as error:  # torch.save hides the OSError of a full disk behind an error of its own
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def pack_checkpoint(contents: dict[str, Any], path: Path) -> None:
    """Write the part of a checkpoint that prediction and fine-tuning need to a safetensors file, weights in bfloat16.

    The file is half as large as ``best.pt``, holds a checksum, and is read by :func:`load_checkpoint` too. Raises
    InputError if it cannot be written.
    """
    from safetensors.torch import save

    state = {
        key: (value.to(torch.bfloat16) if value.is_floating_point() else value).contiguous()
        for key, value in weights_of(contents).items()
    }
    described = {key: contents[key] for key in DESCRIPTION if key in contents}
    if "config" in described:
        described["config"] = _without_paths(described["config"])
    metadata = {"format": FORMAT, "description": to_json(described)}
    with atomic_write(path) as beside:
        beside.write_bytes(save(state, metadata | {DIGEST: digest(state, metadata)}))


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a run without the paths of its files, which mean nothing on another machine.

    Of the data folders, the names are kept.
    """
    paths: dict[str, Any] = dict.fromkeys(("image_root", "backbone_weights", "out", "resume", "from_"))
    paths |= {key: [Path(path).name for path in config.get(key) or ()] for key in ("data", "val")}
    cleared = {key: _without_paths(value) if isinstance(value, dict) else value for key, value in config.items()}
    return cleared | {key: value for key, value in paths.items() if key in config}


def load_checkpoint(source: str | os.PathLike[str], to_resume: bool = False) -> dict[str, Any]:
    """Read and check a checkpoint, tensors on the CPU, without running any code from the file.

    The result is valid: the entries of :data:`DESCRIPTION` have their types and lie in their ranges, and a network can
    be built from the options (:func:`build_model`).

    Args:
        source: a file that :func:`save_checkpoint` or :func:`pack_checkpoint` wrote, or the name of a model that comes
            with the package (:mod:`maskrcnn.pretrained`).
        to_resume: whether it must be a ``last.pt``, with everything that a run needs to continue.

    Raises:
        InputError: the file is missing, damaged (its checksums are compared) or not a checkpoint, or its options are
            invalid.
    """
    path = locate(source)
    if not path.is_file():
        known = f"; models by name: {', '.join(pretrained.names())}" if pretrained.names() else ""
        raise InputError(f"{source}: no such checkpoint{known}")
    try:
        contents = read_file(path)
    except Exception as error:  # the readers raise all kinds of exceptions for a file of another format
        reason = f": {error}" if type(error) is ValueError else ""
        raise InputError(f"{path}: not a checkpoint that can be read ({type(error).__name__}{reason})") from error
    if not isinstance(contents, dict) or str(contents.get("format")) != FORMAT:
        raise InputError(
            f"{path}: not a checkpoint of train.py; for weights of other programs use train.py --backbone-weights"
        )
    missing = [name for name in (*_REQUIRED, *(_REQUIRED_TO_RESUME if to_resume else ())) if name not in contents]
    if missing:
        hint = "; to resume a run, give its folder or its last.pt" if to_resume else ""
        raise InputError(f"{path}: a checkpoint without {', '.join(missing)}{hint}")
    _check(contents, path)
    return contents


def _check(contents: dict[str, Any], path: Path) -> None:
    """Raise InputError for entries of a checkpoint that have another type or value than they must have."""
    for name, kind in _ENTRIES.items():
        if name in contents:
            check_value(f"{path}: {name}", contents[name], kind)
    percentiles, options, average = contents["percentiles"], contents["model_options"], contents.get("ema")
    if percentiles is not None and percentiles[0] >= percentiles[1]:
        raise InputError(f"{path}: percentiles is {percentiles}; expected rising numbers")
    if not isinstance(contents.get("best", 0.0), float):
        raise InputError(f"{path}: best is {str(contents['best'])[:100]}; expected a score")
    if average is not None:
        check_value(f"{path}: the updates of ema", average.get("updates"), _Count)
    try:
        check_arguments(mask_rcnn_resnet_fpn, _model_arguments(options))
    except InputError as error:
        raise InputError(f"{path}: model_options: {error}") from None
    if len(contents["class_names"]) != options["num_classes"]:
        raise InputError(f"{path}: {len(contents['class_names'])} class_names for {options['num_classes']} classes")
    for weights in (contents["model"], *(() if average is None else (average.get("model"),))):
        if not isinstance(weights, dict) or not all(isinstance(k, str) and is_weight(v) for k, v in weights.items()):
            raise InputError(f"{path}: the weights are not a dict of plain tensors by name")
        sizes = _sizes(_model_arguments(options))
        if wrong := key_mismatches({key: weights[key] for key in sizes if key in weights}, sizes):
            raise InputError(f"{path}: weights of another architecture or class count: {wrong}")


def _sizes(options: dict[str, Any]) -> State:
    """Empty tensors with the shapes of some layers: the size of a network is compared before memory is allocated."""
    defaults = {name: value.default for name, value in inspect.signature(mask_rcnn_resnet_fpn).parameters.items()}
    width, channels, hidden = ((defaults | options)[name] for name in ("width", "channels", "box_hidden"))
    classes = options["num_classes"] + 1
    shapes = {
        "backbone.conv1.weight": (width, 3, 7, 7),
        "box_head.fc6.weight": (hidden, channels * 49),
        "box_head.cls_score.weight": (classes, hidden),
        "box_head.cls_score.bias": (classes,),
        "box_head.bbox_pred.weight": (4 * classes, hidden),
        "box_head.bbox_pred.bias": (4 * classes,),
        "mask_head.mask_fcn_logits.weight": (classes, channels, 1, 1),
        "mask_head.mask_fcn_logits.bias": (classes,),
    }
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def locate(source: str | os.PathLike[str]) -> Path:
    """The file of a checkpoint, given its path or the name of a model that comes with the package."""
    path = Path(source)
    if not path.is_file() and (found := pretrained.find(str(source))) is not None:
        return found
    return path


def build_model(contents: dict[str, Any], path: Path) -> MaskRCNN:
    """Build the network of a checkpoint that :func:`load_checkpoint` read; ``path`` is for the error message.

    Raises InputError if the weights have another architecture or class count than ``model_options`` say.
    """
    try:
        model = mask_rcnn_resnet_fpn(**_model_arguments(contents["model_options"]))
    except ValueError as error:  # each option is in its range, but the combination is invalid
        raise InputError(f"{path}: model_options: {error}") from None
    load_model_state(model, weights_of(contents), path)
    return model


def weights_of(contents: dict[str, Any]) -> State:
    """The weights to predict with: their moving average in the ``last.pt`` of a run with ``--ema``, as in
    ``best.pt``."""
    average = contents.get("ema")
    return contents["model"] if average is None else average["model"]


def load_model_state(model: MaskRCNN, state: State, path: Path) -> None:
    """Load a state dict; raises InputError that names the keys and shapes that differ from the model's."""
    if wrong := key_mismatches(state, model.state_dict()):
        raise InputError(f"{path}: weights of another architecture or class count: {wrong}")
    model.load_state_dict(state)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Load the per-weight state of an optimizer (from ``optimizer.state_dict()``), e.g. Adam's moments.

    The learning rate and other options are not loaded: the run's options set them. Raises InputError if the state is
    that of other weights or another optimizer: PyTorch's fused kernels access memory out of bounds for other shapes.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    weight_states = state.get("state")
    names = _OPTIMIZER_STATE[type(optimizer)]

    def fits(index: object, values: object) -> bool:
        if not isinstance(index, int) or not 0 <= index < len(weights) or not isinstance(values, dict):
            return False
        shapes = {name: torch.Size() if name == "step" else weights[index].shape for name in names}
        return values.keys() == names and all(
            is_weight(value) and value.is_floating_point() and value.shape == shapes[name]
            for name, value in values.items()
        )

    if not isinstance(weight_states, dict) or not all(fits(index, values) for index, values in weight_states.items()):
        raise InputError(f"{path}: the optimizer's state is that of other weights, or of another optimizer")
    optimizer.load_state_dict({"state": weight_states, "param_groups": optimizer.state_dict()["param_groups"]})


def _model_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the network as function arguments: lists become tuples, since checkpoints hold plain types.

    Checkpoints without the entry ``aligned`` were written when no network was aligned.
    """

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list | tuple) else value

    return {key: tuples(value) for key, value in ({"aligned": False} | options).items()}
