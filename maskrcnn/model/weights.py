"""Loads pretrained weights: ResNets of torchvision and timm, detectron2's ``R-50.pkl``, torchvision's Mask R-CNN, and
checkpoints of this package.

The format is recognized by the keys in the file, not by its name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import MaskRCNN
from maskrcnn.model.resnet import Bottleneck
from maskrcnn.model.weight_files import State, is_weight, local_file, read_file

# prefixes of torchvision's Mask R-CNN -> ours; the rest of the key is the same
_TORCHVISION_PREFIXES = {
    "backbone.body.": "backbone.",
    "backbone.fpn.": "neck.",
    "rpn.head.": "rpn.head.",
    "roi_heads.box_head.": "box_head.",
    "roi_heads.box_predictor.": "box_head.",
    "roi_heads.mask_head.": "mask_head.convs.",
    "roi_heads.mask_predictor.": "mask_head.",
}
_LAST_LAYERS = (
    "rpn.head.cls_logits.",
    "rpn.head.bbox_pred.",
    "box_head.cls_score.",
    "box_head.bbox_pred.",
    "mask_head.mask_fcn_logits.",
)
_CLASS_LAYERS = ("box_head.cls_score.", "box_head.bbox_pred.", "mask_head.mask_fcn_logits.")
# The input of detectron2's ImageNet models is BGR in 0..255, minus this mean, not scaled.
_DETECTRON2_MEAN_BGR = (103.53, 116.28, 123.675)


def load_weights(model: MaskRCNN, source: str | os.PathLike[str], adapt: bool = False) -> str:
    """Load weights of another program, or of another run of this package, into ``model`` (in place).

    Args:
        model: weights with batch statistics require the norm ``batch`` or ``frozen_batch``.
        source: a file (``.pth``, ``.pt``, ``.bin``, ``.safetensors``, ``.pkl``) or an http(s) or file URL; downloads
            are kept in PyTorch's hub folder, and checked against the hash prefix in their name
            (``resnet50-0676ba61.pth``).
        adapt: for a whole Mask R-CNN: skip last layers whose shapes, which depend on the numbers of classes and
            anchors, differ from the model's (fine-tuning on other classes).

    Returns:
        One line with the format and the number of tensors that were loaded.

    Raises:
        InputError: the file is missing or damaged, has an unknown format or a wrong hash, contains code (pickles may
            only hold numpy arrays), or its keys or shapes do not fit (they are named).
    """
    path = local_file(source)
    state = dict(_tensors(_read(path), path))
    name, target, converted, ignored = _recognize(state, model, path)
    if adapt and target is model:
        ignored += _keep_other_last_layers(converted, target)
    loaded = len(converted.keys() - set(ignored))
    _check_fit(target, converted, path)
    target.load_state_dict(converted, strict=False)
    more = ", ..." if len(ignored) > 3 else ""
    note = f", {len(ignored)} of its tensors not used ({', '.join(ignored[:3])}{more})" if ignored else ""
    return f"{path}: {name}, {loaded} tensors loaded{note}"


def trained_aligned(source: str | os.PathLike[str]) -> bool:
    """Whether a network initialized with these weights should be aligned (option of ``mask_rcnn_resnet_fpn``).

    False for torchvision's Mask R-CNN; for a checkpoint of this package its own option (False for old ones without it);
    True for a ResNet, which has no boxes. For ``source`` and errors see :func:`load_weights`.
    """
    path = local_file(source)
    contents = _read(path)
    keys = dict(_tensors(contents, path))
    if _is_our_model(keys):
        options = contents.get("model_options") if isinstance(contents, Mapping) else None
        return isinstance(options, Mapping) and options.get("aligned") is True
    return not _is_torchvision_model(keys)


def transfer_weights(model: MaskRCNN, state: State) -> str:
    """Load the weights of a network of this package into one of the same architecture, for fine-tuning (in place).

    If the numbers of classes differ, the last layers are adapted. If ``state`` has a single class, all classes of
    ``model`` start as copies of it that share its score: cells are segmented from the first step on, and only the
    classes must be learned. If it has several, the last layers keep the random weights of ``model``.

    Returns:
        One line that says what was loaded.

    Raises:
        InputError: for weights of another architecture.
    """
    own = model.state_dict()
    adapted = dict(state)
    note = ""
    if state["box_head.cls_score.bias"].shape != own["box_head.cls_score.bias"].shape:
        before, now = (len(values["box_head.cls_score.bias"]) - 1 for values in (state, own))
        for key in (key for key in state if key.startswith(_CLASS_LAYERS)):
            adapted[key] = own[key] if before > 1 else _repeat_class(state[key], now)
        if before == 1:
            adapted["box_head.cls_score.bias"][1:] -= math.log(now)
        start = "as copies of its single class" if before == 1 else "with random weights"
        note = f"; {now} classes start {start}"
    if wrong := key_mismatches(adapted, own):
        raise InputError(f"weights that do not fit the model: {wrong}")
    model.load_state_dict(adapted)
    return f"{len(state)} tensors loaded{note}"


def _repeat_class(weight: Tensor, classes: int) -> Tensor:
    """Repeat the class of a weight [2 * n, ...] for background and one class: [(1 + classes) * n, ...]."""
    background, cell = weight.chunk(2)
    return torch.cat([background, *[cell] * classes])


def _is_torchvision_model(state: State) -> bool:
    return any(key.startswith("roi_heads.") for key in state)


def _is_our_model(state: State) -> bool:
    return "neck.inner_blocks.0.0.weight" in state


def _recognize(state: State, model: MaskRCNN, path: Path) -> tuple[str, nn.Module, State, list[str]]:
    """The name of the format, the module that it is for, its tensors under our names, and the ignored keys."""
    backbone = model.backbone
    if _is_torchvision_model(state):
        return "torchvision Mask R-CNN", model, _from_torchvision_model(state, path), []
    if _is_our_model(state):
        return "checkpoint of train.py", model, dict(state), []
    if "layer1.0.conv1.weight" in state:
        classifier = [key for key in state if key.startswith("fc.")]
        kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
        return "ResNet of torchvision or timm", backbone, _without_counters(kept), classifier
    stripped = {key.removeprefix("backbone.bottom_up."): value for key, value in state.items()}
    if "stem.conv1.weight" in stripped:
        kept = {key: value for key, value in stripped.items() if not key.startswith("stem.fc")}
        resnet = {key: value for key, value in kept.items() if key.startswith(("stem.", "res"))}
        ignored = sorted(stripped.keys() - resnet.keys())
        if not all(b.conv1.stride >= b.conv2.stride for b in backbone.modules() if isinstance(b, Bottleneck)):
            raise InputError(
                f"{path}: detectron2's ResNet has its strides in 1x1 convolutions; build the model with --stride-in-1x1"
            )
        return "ResNet of detectron2", backbone, _from_detectron2(resnet, model), ignored
    raise InputError(
        f"{path}: neither a ResNet of torchvision, timm or detectron2 nor a Mask R-CNN of torchvision or train.py; its "
        f"keys begin with {', '.join(list(state)[:3]) or 'none'}"
    )


def _from_torchvision_model(state: State, path: Path) -> State:
    converted: State = {}
    for key, value in _without_counters(state).items():
        prefix = next((p for p in _TORCHVISION_PREFIXES if key.startswith(p)), None)
        if prefix is None:
            raise InputError(f"{path}: a torchvision Mask R-CNN with the unknown key {key}")
        name = _TORCHVISION_PREFIXES[prefix] + key.removeprefix(prefix)
        # before torchvision 0.14, convolutions had no wrapper module
        name = re.sub(r"^(neck\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
        name = re.sub(r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1", name)
        name = re.sub(r"^mask_head\.convs\.mask_fcn(\d)\.", lambda m: f"mask_head.convs.{int(m[1]) - 1}.0.", name)
        converted[name] = value
    return converted


def _from_detectron2(state: State, model: MaskRCNN) -> State:
    """Rename ``res2.0.conv1.norm.weight`` to ``layer1.0.bn1.weight``, convert BGR to RGB, and set ``model``'s pixel
    mean and std to detectron2's."""
    converted: State = {}
    for key, value in state.items():
        name = re.sub(r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", key.removeprefix("stem."))
        name = re.sub(r"conv(\d)\.norm\.", r"bn\1.", name)
        name = name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
        converted[name] = value
    if converted["conv1.weight"].dim() == 4:  # if not, the check of shapes fails later
        converted["conv1.weight"] = converted["conv1.weight"].flip(1)
    model.pixel_mean.copy_(torch.tensor(_DETECTRON2_MEAN_BGR[::-1]).view(1, 3, 1, 1) / 255)
    model.pixel_std.fill_(1 / 255)
    return converted


def _without_counters(state: State) -> State:
    """Remove BatchNorm's batch counters, which frozen norms do not have and nothing depends on."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _keep_other_last_layers(state: State, model: nn.Module) -> list[str]:
    """Replace last layers of another shape by the model's own, in place; returns their keys."""
    own = model.state_dict()
    last = [key for key in state if key.startswith(_LAST_LAYERS) and key in own]
    layers = [key for key in last if state[key].shape != own[key].shape]
    state.update({key: own[key] for key in layers})
    return layers


def _check_fit(target: nn.Module, state: State, path: Path) -> None:
    optional = ("num_batches_tracked", "pixel_mean", "pixel_std")  # missing in other programs' files
    own = {k: v for k, v in target.state_dict().items() if k in state or not k.endswith(optional)}
    statistics = [any("running_mean" in key for key in keys) for keys in (state, own)]
    if statistics == [True, False]:
        raise InputError(
            f"{path}: weights with batch norm, but the model has group norm; choose --norm frozen_batch or batch"
        )
    if statistics == [False, True]:
        raise InputError(f"{path}: weights with group norm, but the model has batch norm; choose --norm group")
    if wrong := key_mismatches(state, own):
        raise InputError(f"{path}: weights that do not fit the model: {wrong}")


def key_mismatches(state: State, own: State) -> str:
    """The first three keys of a file's ``state`` that do not match the model's state ``own``; "" if all match."""
    wrong = [f"{key} (missing in the file)" for key in own if key not in state]
    wrong += [f"{key} (not in the model)" for key in state if key not in own]
    wrong += [
        f"{key} ({tuple(state[key].shape)}, the model has {tuple(own[key].shape)})"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return ", ".join(wrong[:3]) + more


def _read(path: Path) -> object:
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        return read_file(path)
    except Exception as error:  # each format has its own exceptions for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a weights file that can be read: {reason}") from error


def _tensors(contents: object, path: Path) -> Iterator[tuple[str, Tensor]]:
    for wrapper in ("model", "state_dict"):
        if isinstance(contents, Mapping) and isinstance(contents.get(wrapper), Mapping):
            contents = contents[wrapper]
    if not isinstance(contents, Mapping):
        raise InputError(f"{path}: holds a {type(contents).__name__}, expected weights by name")
    for key, value in contents.items():
        if isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32, np.float64, np.int64):
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        if isinstance(key, str) and is_weight(value):
            yield key, value
