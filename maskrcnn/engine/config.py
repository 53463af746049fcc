"""The options of a training run, as shown by ``train.py --help`` and stored in ``config.json`` of the run folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from maskrcnn.data.colours import check_channels
from maskrcnn.device import Precision
from maskrcnn.errors import InputError
from maskrcnn.model.losses import MaskLoss
from maskrcnn.model.mask_rcnn import (
    AnchorRatio,
    AnchorSize,
    BoxHidden,
    Channels,
    Depth,
    Detected,
    MaskConvs,
    NumClasses,
    Sampled,
    Stages,
    TverskyWeight,
    Width,
)
from maskrcnn.options import Fraction, Percentile, Range, check_options, check_value, from_plain, plain

Scale = Annotated[float, Range(0.0625, 16)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Count = Annotated[int, Range(1, 1_000_000)]

ANCHOR_SIZES = ((8.0, 4.0), (16.0,), (32.0,), (64.0,), (128.0,))
"""Default anchor sizes of P2 to P6, in pixels."""


@dataclass(frozen=True)
class DataOptions:
    """Pictures and training crops."""

    data: tuple[Path, ...] = ()
    """Folders in the HW3 layout (train/<name>/image.tif, class1.tif, ...) and COCO annotation files (.json). Several
    must have the same classes, or --merge-classes must be given. Default: a synthetic four-class data set, which is
    written into the run folder."""
    val: tuple[Path, ...] = ()
    """Folders and COCO files for validation. --data is not split then, and --val-fraction is not used."""
    image_root: Path | None = None
    """Folder of the pictures named in COCO files; default: the folder of the file."""
    num_classes: NumClasses | None = None
    """Number of cell classes; default: the highest class in the data."""
    merge_classes: str | None = None
    """Merge all classes of all data into one of this name, such as nucleus; None: classes are unchanged."""
    source_by: str | None = None
    """Regular expression: its match at the start of a picture's name is the picture's source, such as tnbc|nuinsseg for
    tnbc_03_1. Without a match, the source is the name of the folder or COCO file."""
    group_by: str | None = None
    """Regular expression: pictures with the same match at the start of their names, such as tnbc_\\d+ (one patient) or
    [^/]+/ (one folder, such as a slide), are on the same side of the split."""
    val_fraction: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.1
    """Fraction of the pictures for validation, stratified by class and source."""
    split_seed: Seed = 0
    """Seed of the train/validation split, independent of --seed so that runs with other seeds have the same split."""
    crop: Annotated[int, Range(32, 16384, multiple_of=32)] = 512
    """Side of the square training crops, in pixels (a multiple of 32). Smaller pictures are padded by mirroring."""
    resize: Annotated[int, Range(32, 16384, multiple_of=32)] | None = None
    """Train on whole pictures instead of crops: the longer side of each is resized to this many pixels (a multiple of
    32), and the shorter side is padded by mirroring. Recorded in the checkpoint: prediction resizes pictures, slides
    too, to the same longer side. --crop, --diameter and --rare-class-probability are not used then."""
    diameter: Annotated[float, Range(8, 512)] | Literal["none"] = 30.0
    """Pictures are rescaled so that their cells have this median diameter in pixels, in training and in prediction;
    recorded in the checkpoint. none: pictures are not rescaled."""
    scale_min: Scale | None = None
    """Minimum of the random factor by which training crops are also rescaled (default: 0.6; with --diameter none
    0.8)."""
    scale_max: Scale | None = None
    """Maximum of that factor (default: 1.6; with --diameter none 1.25)."""
    off_scale_probability: Fraction = 0.1
    """With --diameter: fraction of the crops that are rescaled by a random factor between 1/4 and 4, whatever the size
    of their cells, as the estimate of the diameter looks at pictures."""
    rare_class_probability: Fraction = 0.5
    """Fraction of the crops that are placed around a cell, its class drawn uniformly from the picture's classes."""
    repeat_threshold: Fraction = 1.0
    """Pictures with a class that less than this fraction of the pictures have are repeated (repeat-factor sampling): at
    1.0, those with a class that the fraction f has, 1 / sqrt(f) times. 0: off. With several sources, the classes of
    each source count separately."""
    percentiles: tuple[Percentile, Percentile] | None = (0.1, 99.9)
    """Each picture's intensities between these percentiles are stretched to 0..255; None: not stretched. Recorded in
    the checkpoint for prediction."""
    channels: tuple[Annotated[int, Range(0, 65535)], ...] | None = None
    """Channels (from 0) of the pictures to use as red, green and blue; a single one becomes grey. Recorded in the
    checkpoint for prediction."""
    color_jitter: Annotated[float, Range(0, 1, open_high=True)] = 0.2
    """Strength of the brightness, contrast and saturation jitter; 0: none."""
    appearance: Literal["light", "strong"] = "light"
    """Augmentation of appearance. light: only color jitter; strong: also stain, gamma, inversion, grey, blur, noise."""
    workers: Annotated[int, Range(0, 1024)] | None = None
    """Processes that prepare batches; default: none on the CPU, up to 8 on a GPU."""
    cache_gb: Annotated[float, Range(0, 1_000_000)] = 8.0
    """Maximum memory for decoded pictures and label planes, shared by the workers; the rest is decoded in each epoch.
    Pictures take 3 bytes per pixel and 2 more per class."""

    def canonical_diameter(self) -> float | None:
        """``--diameter`` in pixels; None: pictures are not rescaled."""
        return None if self.diameter == "none" or self.resize is not None else self.diameter

    def scale(self) -> tuple[float, float]:
        """The range of the random factor by which crops are rescaled."""
        low, high = (0.8, 1.25) if self.diameter == "none" else (0.6, 1.6)
        return (
            low if self.scale_min is None else self.scale_min,
            high if self.scale_max is None else self.scale_max,
        )


@dataclass(frozen=True)
class ModelOptions:
    """The network."""

    depth: Depth = 50
    """ResNet depth."""
    norm: Literal["auto", "group", "batch", "frozen_batch"] = "auto"
    """Normalization. auto: frozen_batch when --backbone-weights is given, group when training from random weights."""
    backbone_weights: str | None = None
    """File or URL of pretrained weights: a torchvision or timm ResNet, detectron2's R-50.pkl, or a whole Mask R-CNN,
    torchvision's or best.pt of another run (without last layers for other classes or anchors; with --norm group if the
    run had it), recognized by their keys."""
    stages: Stages = 4
    """ResNet stages. With --diameter, 3 are as good: no cell needs the large receptive field of the fourth, which has
    three quarters of a ResNet-18's weights."""
    width: Width = 64
    """Channels of the first ResNet stage."""
    pyramid_channels: Channels = 256
    """Channels of the pyramid, the RPN and the mask head."""
    box_hidden: BoxHidden = 1024
    """Width of the box head's fully connected layers."""
    mask_convs: MaskConvs = 4
    """Number of 3x3 convolutions of the mask head."""
    stride_in_1x1: bool = False
    """Put the stride of a stage into its first 1x1 convolution, as in detectron2's R-50.pkl."""
    aligned: bool | None = None
    """In RoIAlign and mask targets, the centre of pixel i is at i + 0.5, as for boxes (else at i, as in torchvision).
    Default: as the Mask R-CNN of --backbone-weights was trained (torchvision's: no), yes without one."""
    mask_loss: MaskLoss = "bce"
    """Loss of the mask head."""
    tversky_alpha: TverskyWeight = 0.3
    """Tversky loss: weight of false positives."""
    tversky_beta: TverskyWeight = 0.7
    """Tversky loss: weight of false negatives."""
    anchor_sizes: tuple[str, ...] | None = None
    """Anchor sizes in pixels at P2 to P6: one entry per level, several sizes joined by commas; one level more than
    --stages. Default: 8,4 16 32 64 128 with 4 stages, 8,4 16 32 64 with 3."""
    anchor_ratios: tuple[AnchorRatio, ...] = (0.5, 1.0, 1.5, 2.0)
    """Anchor aspect ratios, height over width."""
    detections_per_image: Detected = 200
    """Maximum number of cells of a small picture; larger ones may have one per 20x20 pixels."""
    rpn_batch_per_image: Sampled = 256
    """Anchors sampled for the RPN losses, at most half of them positive."""
    roi_batch_per_image: Sampled = 512
    """Proposals sampled for the box losses; positives among them also train the mask head."""
    roi_positive_fraction: Fraction = 0.25
    """Maximum fraction of positives among the sampled proposals."""


@dataclass(frozen=True)
class OptimOptions:
    """The optimizer and its schedule."""

    epochs: Count | None = None
    """Passes over the training pictures; None: 20, or as many as make 400 steps where the pictures are few."""
    batch_size: Annotated[int, Range(1, 65536)] = 2
    """Pictures per batch; with several processes (torchrun), per batch of each process."""
    accumulate: Annotated[int, Range(1, 65536)] = 1
    """Batches per step, whose gradients are averaged."""
    ema: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, which is validated and saved as best.pt;
    None: off."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """SGD uses momentum 0.9."""
    lr: Annotated[float, Range(0, 1000, open_low=True)] | None = None
    """Learning rate after the warm-up; it decreases to 0 with a cosine schedule. None: 1e-4, or 1e-3 to fine-tune a
    model for new classes."""
    warmup_steps: Annotated[int, Range(0, 1_000_000_000)] = 100
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.0
    """Weight decay (decoupled for adamw)."""
    clip_norm: Annotated[float, Range(0, 1_000_000)] = 10.0
    """Maximum norm of the gradient, to which larger ones are scaled; 0: off."""


@dataclass(frozen=True)
class TrainConfig:
    """Train Mask R-CNN on pictures of cells."""

    data_options: DataOptions = field(default_factory=DataOptions)
    model_options: ModelOptions = field(default_factory=ModelOptions)
    optim_options: OptimOptions = field(default_factory=OptimOptions)
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Fine-tune a model that comes with the package (nuclei) or another run's best.pt. Its architecture, diameter and
    percentiles are used; for other classes its last layers are adapted. best.pt is never worse than this model, which
    is validated first."""
    out: Path | None = None
    """Run folder; default: runs/<date>-<time>-<mask loss>."""
    resume: Path | None = None
    """Run folder to resume, from its last.pt and with its options. Only epochs, data folders (if they have moved),
    device, precision, workers, cache size, and how often to validate and save may be changed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where it is available."""
    precision: Precision = "auto"
    """auto: bf16 autocast on GPUs and CPUs with bfloat16 units (AVX-512 BF16, AMX), else fp32."""
    seed: Seed = 0
    """Seed of weights, crops and sampling."""
    val_every: Count | None = None
    """Validate every this many epochs, and after the last one; None: about 20 times in a run."""
    save_every: Count = 200
    """Write last.pt and loss.png every this many steps, and at each validation."""

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON types, nested like the groups."""
        return plain(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; raises InputError for options that this version does not have."""
        try:
            # old runs had no such options
            data = {"diameter": "none", "off_scale_probability": 0.0, **values["data_options"]}
            for name in ("data", "val"):  # older versions stored one path or None
                value = data.get(name)
                data[name] = [] if value is None else [value] if isinstance(value, str) else value
            model = values["model_options"]
            if isinstance(model, dict) and "channels" in model:
                model = {("pyramid_channels" if name == "channels" else name): model[name] for name in model}
            return from_plain(TrainConfig, {**values, "data_options": data, "model_options": model})
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f"options of a run that were written by another version or are damaged: {error}") from None

    def check(self) -> None:
        """Raise InputError for invalid values or combinations."""
        check_options(self)
        check_channels(self.data_options.channels)
        data, (low, high) = self.data_options, self.data_options.scale()
        sized, with_resize = data.resize is not None, "none with --resize, which sets the scale"
        merged, percentiles = data.merge_classes is not None, data.percentiles
        rules: list[tuple[str, object, bool, str]] = [
            ("--scale-min", low, low <= high, f"at most --scale-max, {high}"),
            ("--scale-min", data.scale_min, not sized or data.scale_min is None, with_resize),
            ("--scale-max", data.scale_max, not sized or data.scale_max is None, with_resize),
            ("--diameter", data.diameter, not sized or data.diameter in ("none", DataOptions.diameter), with_resize),
            ("--percentiles", percentiles, percentiles is None or percentiles[0] < percentiles[1], "rising numbers"),
            ("--val", " ".join(map(str, data.val)), not data.val or bool(data.data), "--data as well"),
            ("--merge-classes", repr(data.merge_classes), data.merge_classes != "", "a name"),
            ("--num-classes", data.num_classes, not merged or data.num_classes is None, "none with --merge-classes"),
            ("--source-by", data.source_by, _is_expression(data.source_by), "a regular expression"),
            ("--group-by", data.group_by, _is_expression(data.group_by), "a regular expression"),
            ("--group-by", data.group_by, not data.val or data.group_by is None, "none with --val: nothing is split"),
            ("--anchor-ratios", "empty", bool(self.model_options.anchor_ratios), "at least one ratio"),
        ]
        for name, value, good, expected in rules:
            if not good:
                raise InputError(f"{name} is {value}; expected {expected}")
        self.anchor_sizes()

    def anchor_sizes(self) -> tuple[tuple[float, ...], ...]:
        """The anchor sizes of P2 to P6 as numbers."""
        levels = self.model_options.stages + 1
        given = self.model_options.anchor_sizes
        if given is None:
            return ANCHOR_SIZES[:levels]
        try:
            sizes = tuple(tuple(float(size) for size in level.split(",")) for level in given)
            check_value("a size", [size for level in sizes for size in level], tuple[AnchorSize, ...])
        except ValueError:
            sizes = ()
        if len(sizes) != levels:
            raise InputError(
                f"--anchor-sizes is {' '.join(given)}; expected sizes in pixels for {levels} levels, such as "
                + " ".join(",".join(f"{size:g}" for size in level) for level in ANCHOR_SIZES[:levels])
            )
        return sizes


TrainCli = Annotated[TrainConfig, tyro.conf.OmitArgPrefixes]
"""The same options as a flat list on the command line."""


def _is_expression(pattern: str | None) -> bool:
    try:
        re.compile(pattern or "")
    except re.error:
        return False
    return True
