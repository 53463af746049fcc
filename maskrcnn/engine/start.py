"""Initialization of a training run: random weights, pretrained weights, or a checkpoint to fine-tune."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskrcnn import distributed
from maskrcnn.checkpoint import load_checkpoint, weights_of
from maskrcnn.engine.config import ANCHOR_SIZES, DataOptions, ModelOptions, TrainConfig, plain
from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.weights import load_weights, trained_aligned, transfer_weights

EPOCHS, LEAST_STEPS, VALIDATIONS = 20, 400, 20
"""Defaults: the epochs of a run, or as many as make these steps, and about how often it is validated."""

LR, NEW_CLASSES_LR = 1e-4, 1e-3
"""Defaults of the learning rate. Classes that a model does not know start as copies of one, which few small steps do
not tell apart: benchmarks/results/finetune-cpu.md."""

TRAINING_OPTIONS = (
    "detections_per_image",
    "rpn_batch_per_image",
    "roi_batch_per_image",
    "roi_positive_fraction",
    "mask_loss",
    "tversky_alpha",
    "tversky_beta",
)
"""Model options that affect training, not the architecture."""

ARCHITECTURE_OPTIONS = (
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
"""Model options that determine the architecture, besides the anchor sizes."""


def adopt_start(config: TrainConfig) -> TrainConfig:
    """``config`` with the architecture, diameter and percentiles of the checkpoint of ``--from``.

    Its channels are used unless others are given, since new pictures may have other channels. Raises InputError for
    other options that differ from the checkpoint's and are not at their defaults.
    """
    assert config.from_ is not None
    if config.model_options.backbone_weights is not None:
        raise InputError("--from and --backbone-weights: give one of them")
    start = load_checkpoint(config.from_)
    network = {"aligned": False, "stages": 4, "anchor_sizes": ANCHOR_SIZES, **start["model_options"]}
    architecture: dict[str, Any] = {name: network[name] for name in ARCHITECTURE_OPTIONS if name in network}
    if "channels" in architecture:
        architecture["pyramid_channels"] = architecture.pop("channels")
    architecture["anchor_sizes"] = tuple(",".join(f"{size:g}" for size in level) for level in network["anchor_sizes"])
    diameter, percentiles = start.get("diameter"), start["percentiles"]
    channels = config.data_options.channels or start.get("channels")
    preprocessing: dict[str, Any] = {
        "resize": start.get("resize"),
        "diameter": "none" if diameter is None else diameter,
        "percentiles": None if percentiles is None else tuple(percentiles),
        "channels": channels if channels is None else tuple(channels),
    }
    _check_same_or_default(config.model_options, architecture, config.from_)
    _check_same_or_default(config.data_options, preprocessing, config.from_)
    return dataclasses.replace(
        config,
        model_options=dataclasses.replace(config.model_options, **architecture),
        data_options=dataclasses.replace(config.data_options, **preprocessing),
    )


def choose_schedule(config: TrainConfig, batches: int, new_classes: bool) -> TrainConfig:
    """``config`` with values for the options that are None: how long to train, how fast, and how often to validate.

    Args:
        config: the options.
        batches: number of batches per epoch, in each process.
        new_classes: whether a model is fine-tuned for other classes than it knows.
    """
    optim = config.optim_options
    steps = -(-batches // optim.accumulate)
    epochs = optim.epochs or max(EPOCHS, -(-LEAST_STEPS // steps))
    optim = dataclasses.replace(optim, epochs=epochs, lr=optim.lr or (NEW_CLASSES_LR if new_classes else LR))
    return dataclasses.replace(config, optim_options=optim, val_every=config.val_every or max(1, epochs // VALIDATIONS))


def _check_same_or_default(options: ModelOptions | DataOptions, expected: dict[str, Any], start: str) -> None:
    """Raise InputError for an option that is neither at its default nor equal to the checkpoint's."""
    for name, value in expected.items():
        given = getattr(options, name)
        if given != getattr(type(options)(), name) and plain(given) != plain(value):
            raise InputError(f"--{name.replace('_', '-')} is {given}, but {start} was trained with {value}")


def load_start(model: MaskRCNN, config: TrainConfig) -> bool:
    """Load the weights of ``--from`` or ``--backbone-weights``, if given, into a new network, and print a message.

    Returns whether it is fine-tuned for another number of classes than the model of ``--from`` has.
    """
    new_classes = False
    if config.from_ is not None:
        start = load_checkpoint(config.from_)
        new_classes = start["model_options"]["num_classes"] != model.box_head.num_classes
        message = f"{config.from_}: {transfer_weights(model, weights_of(start))}"
    elif config.model_options.backbone_weights is not None:
        message = load_weights(model, config.model_options.backbone_weights, adapt=True)
    else:
        return False
    if distributed.is_main():
        print(message)
    return new_classes


def choose_model_options(config: TrainConfig, num_classes: int, saved: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments of :func:`mask_rcnn_resnet_fpn` in plain types, as they are stored in the checkpoint.

    For a resumed run, ``aligned`` is taken from its checkpoint ``saved``, not from its options.
    """
    options = config.model_options
    if config.from_ is not None:
        start = load_checkpoint(config.from_)["model_options"] if saved is None else saved["model_options"]
        given = {name: getattr(options, name) for name in TRAINING_OPTIONS}
        return {"aligned": False, **start, "num_classes": num_classes, "nms_threshold": 0.5, **given}
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
