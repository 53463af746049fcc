"""What a training run starts from: random weights, another program's, or a network of our own that is fine-tuned."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskrcnn import distributed
from maskrcnn.checkpoint import load_checkpoint, weights_of
from maskrcnn.engine.config import ANCHOR_SIZES, DataOptions, ModelOptions, TrainConfig, plain
from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.weights import load_weights, trained_aligned, transfer_weights

OF_TRAINING = (
    "detections_per_image",
    "rpn_batch_per_image",
    "roi_batch_per_image",
    "roi_positive_fraction",
    "mask_loss",
    "tversky_alpha",
    "tversky_beta",
)
"""The model options that say how a network is trained, not what it is."""

OF_NETWORK = (
    "depth",
    "norm",
    "stride_in_1x1",
    "stages",
    "width",
    "channels",
    "box_hidden",
    "mask_convs",
    "aligned",
    "anchor_ratios",
)
"""Those that say what it is, besides the sizes of its anchors."""


def adopt_start(config: TrainConfig) -> TrainConfig:
    """``config`` with the network, diameter and percentiles of the checkpoint that ``--from`` names.

    And with its channels, unless others are asked for: the new pictures may have theirs elsewhere. Raises InputError
    for options that ask for others (an option at its default asks for nothing).
    """
    assert config.from_ is not None
    if config.model_options.backbone_weights is not None:
        raise InputError("--from and --backbone-weights: give one of them")
    start = load_checkpoint(config.from_)
    network = {"aligned": False, "stages": 4, "anchor_sizes": ANCHOR_SIZES, **start["model_options"]}
    has: dict[str, Any] = {name: network[name] for name in OF_NETWORK if name in network}
    if "channels" in has:
        has["pyramid_channels"] = has.pop("channels")
    has["anchor_sizes"] = tuple(",".join(f"{size:g}" for size in level) for level in network["anchor_sizes"])
    diameter, percentiles = start.get("diameter"), start["percentiles"]
    channels = config.data_options.channels or start.get("channels")  # other pictures may have theirs elsewhere
    seen: dict[str, Any] = {
        "resize": start.get("resize"),
        "diameter": "none" if diameter is None else diameter,
        "percentiles": None if percentiles is None else tuple(percentiles),
        "channels": channels if channels is None else tuple(channels),
    }
    _check_not_asked(config.model_options, has, config.from_)
    _check_not_asked(config.data_options, seen, config.from_)
    return dataclasses.replace(
        config,
        model_options=dataclasses.replace(config.model_options, **has),
        data_options=dataclasses.replace(config.data_options, **seen),
    )


def _check_not_asked(options: ModelOptions | DataOptions, has: dict[str, Any], start: str) -> None:
    """Raise InputError for an option that is neither at its default nor what the start has."""
    for name, value in has.items():
        asked = getattr(options, name)
        if asked != getattr(type(options)(), name) and plain(asked) != plain(value):
            raise InputError(f"--{name.replace('_', '-')} is {asked}, but {start} was trained with {value}")


def load_start(model: MaskRCNN, config: TrainConfig) -> None:
    """Give a new network the weights that ``--from`` or ``--backbone-weights`` names, if any, and say so."""
    if config.from_ is not None:
        said = f"{config.from_}: {transfer_weights(model, weights_of(load_checkpoint(config.from_)))}"
    elif config.model_options.backbone_weights is not None:
        said = load_weights(model, config.model_options.backbone_weights, adapt=True)
    else:
        return
    if distributed.is_main():
        print(said)


def choose_model_options(config: TrainConfig, num_classes: int, saved: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments of :func:`mask_rcnn_resnet_fpn`, all of plain types, as they go into the checkpoint.

    Whether a run that goes on is aligned stands in its checkpoint ``saved``, not in its options.
    """
    options = config.model_options
    if config.from_ is not None:
        start = load_checkpoint(config.from_)["model_options"] if saved is None else saved["model_options"]
        own = {name: getattr(options, name) for name in OF_TRAINING}
        return {"aligned": False, **start, "num_classes": num_classes, "nms_threshold": 0.5, **own}
    if saved is not None:
        aligned = saved["model_options"].get("aligned", False)  # as build_model does
    elif options.aligned is None:
        aligned = options.backbone_weights is None or trained_aligned(options.backbone_weights)
    else:
        aligned = options.aligned
    norm = options.norm
    if norm == "auto":
        norm = "frozen_batch" if options.backbone_weights is not None else "group"
    return {
        "depth": options.depth,
        "num_classes": num_classes,
        "norm": norm,
        "stride_in_1x1": options.stride_in_1x1,
        "stages": options.stages,
        "width": options.width,
        "channels": options.pyramid_channels,
        "box_hidden": options.box_hidden,
        "mask_convs": options.mask_convs,
        "anchor_sizes": config.anchor_sizes(),
        "anchor_ratios": options.anchor_ratios,
        "aligned": aligned,
        "detections_per_image": options.detections_per_image,
        "rpn_batch_per_image": options.rpn_batch_per_image,
        "roi_batch_per_image": options.roi_batch_per_image,
        "roi_positive_fraction": options.roi_positive_fraction,
        "mask_loss": options.mask_loss,
        "tversky_alpha": options.tversky_alpha,
        "tversky_beta": options.tversky_beta,
    }
