"""Time of a training step, part by part, compared to torchvision's Mask R-CNN on the same batch.

    python -m benchmarks.train_step [--device cuda] [--cells 20 150 500] [--precisions fp32 bf16]

Both train a ResNet-50 FPN with frozen norms from the same kind of random weights: the same pictures, cells, anchors and
sample counts, Adam, alternately in one process. Torchvision runs as it comes ("torchvision") and, for bf16, under
autocast and channels_last. "like for like" compares the same precision, "as it comes" ours with torchvision in fp32.
The floor is the time for the network's arithmetic, by direct convolution, at the speed of PyTorch's large convolutions
on the machine (Winograd's algorithm needs less arithmetic and can be faster); the memory is the peak of a step in
addition to weights and optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchvision
import tyro
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import roi_heads as torchvision_roi_heads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.measure import (
    Stopwatch,
    convolution_rate,
    machine,
    operations,
    peak_extra_memory,
    side_by_side,
    table,
)
from maskrcnn import ops
from maskrcnn.allocator import keep_freed_memory
from maskrcnn.model import mask_rcnn_resnet50_fpn
from maskrcnn.structures import InstanceLabels

CLASSES = 4
ANCHORS = ((8,), (16,), (32,), (64,), (128,))
RATIOS = (0.5, 1.0, 1.5, 2.0)
PARTS = ("backbone", "rpn head", "proposals", "matching", "RoIAlign", "heads", "mask targets", "other forward")
PARTS_AFTER = ("backward", "optimiser")


@dataclass(frozen=True)
class Options:
    """Time a training step of ours and of torchvision's."""

    device: Literal["cpu", "cuda"] = "cpu"
    cells: tuple[int, ...] = (20, 150, 500)
    """Cells in each picture."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32",)
    """bf16: autocast. Slow on CPUs without bfloat16 units."""
    size: int = 512
    """Side of the pictures, in pixels."""
    keep_memory: bool = False
    """Make the process keep the memory that it frees, as train.py does on a CPU, which makes both sides faster."""
    budget: float = 60.0
    """Seconds to spend on each comparison, at least three rounds."""


@dataclass
class Side:
    """One implementation: its step, and its functions by part."""

    model: nn.Module
    losses: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    parts: list[tuple[Any, str, str]]

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.losses().backward()
        self.optimizer.step()

    def breakdown(self, device: str) -> dict[str, float]:
        """Seconds of each part of one step."""
        watch = Stopwatch(device)
        with watch.wrapped(self.parts):
            self.optimizer.zero_grad(set_to_none=True)
            with watch.part("other forward"):
                loss = self.losses()
            with watch.part("backward"):
                loss.backward()
            with watch.part("optimiser"):
                self.optimizer.step()
        return watch.spent


def batch(cells: int, size: int) -> tuple[Tensor, list[InstanceLabels]]:
    """Two pictures uint8 [2, 3, size, size] of discs, each class on its own plane."""
    generator = torch.Generator().manual_seed(cells)
    images = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = []
    for _ in range(2):
        planes = torch.zeros(CLASSES, size, size, dtype=torch.int32)
        for number in range(1, cells + 1):
            (cy, cx), radius = torch.rand(2, generator=generator) * size, 6 + 8 * torch.rand(1, generator=generator)
            planes[number % CLASSES][(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = number
        labels.append(InstanceLabels.from_planes(planes, range(1, CLASSES + 1)))
    return images, labels


def ours(images: Tensor, labels: list[InstanceLabels], precision: str, device: str) -> Side:
    torch.manual_seed(0)
    model = mask_rcnn_resnet50_fpn(
        CLASSES, norm="frozen_batch", anchor_sizes=ANCHORS, anchor_ratios=RATIOS, aligned=False
    )
    model = model.to(device, memory_format=torch.channels_last).train()
    pictures = images.to(device).contiguous(memory_format=torch.channels_last)
    sizes = [tuple(images.shape[2:])] * len(images)
    cells = [label.to(device) for label in labels]

    def losses() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return sum(model(pictures, sizes, cells).values())

    heads = [model.box_head.fc6, model.box_head.fc7, model.box_head.cls_score, model.box_head.bbox_pred]
    heads += [model.mask_head.convs, model.mask_head.conv5_mask, model.mask_head.mask_fcn_logits]
    parts = [
        (model, "features", "backbone"),
        (model.rpn.head, "forward", "rpn head"),
        (model.rpn, "propose", "proposals"),
        (ops, "match_boxes", "matching"),
        (ops, "multilevel_roi_align", "RoIAlign"),
        (ops, "crop_labels", "mask targets"),
        *((head, "forward", "heads") for head in heads),
    ]
    return Side(model, losses, torch.optim.Adam(model.parameters(), 1e-6, fused=True), parts)


def theirs(images: Tensor, labels: list[InstanceLabels], precision: str, device: str) -> Side:
    torch.manual_seed(0)
    norm = torchvision.ops.FrozenBatchNorm2d
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=5)
    size = images.shape[-1]
    model = TorchvisionMaskRCNN(
        backbone,
        CLASSES + 1,
        min_size=size,
        max_size=size,
        rpn_anchor_generator=AnchorGenerator(ANCHORS, (RATIOS,) * len(ANCHORS)),
    )
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    pictures = [image.to(device).float() / 255 for image in images]
    targets = [
        {
            "boxes": label.boxes.to(device),
            "labels": label.classes.to(device),
            "masks": (label.planes[label.plane] == label.ids[:, None, None]).to(device, torch.uint8),
        }
        for label in labels
    ]

    def losses() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return sum(model(pictures, targets).values())

    heads = model.roi_heads
    parts = [
        (model.backbone, "forward", "backbone"),
        (model.rpn.head, "forward", "rpn head"),
        (model.rpn, "filter_proposals", "proposals"),
        (model.rpn, "assign_targets_to_anchors", "matching"),
        (heads, "assign_targets_to_proposals", "matching"),
        (heads.box_roi_pool, "forward", "RoIAlign"),
        (heads.mask_roi_pool, "forward", "RoIAlign"),
        (torchvision_roi_heads, "project_masks_on_boxes", "mask targets"),
        *((getattr(heads, name), "forward", "heads") for name in ("box_head", "box_predictor")),
        *((getattr(heads, name), "forward", "heads") for name in ("mask_head", "mask_predictor")),
    ]
    return Side(model, losses, torch.optim.Adam(model.parameters(), 1e-6), parts)


def main(options: Options) -> None:
    device = options.device
    rows, details = [], []
    if options.keep_memory:
        keep_freed_memory()
    for precision in options.precisions:
        rate = convolution_rate(precision, device)
        for cells in options.cells:
            images, labels = batch(cells, options.size)
            sides = {
                "torchvision": theirs(images, labels, precision, device),
                "ours": ours(images, labels, precision, device),
            }
            floor = operations(sides["torchvision"].step) / rate
            other, own = side_by_side([side.step for side in sides.values()], device, options.budget)
            memory = [peak_extra_memory(side.step, device) / 1e9 for side in sides.values()]
            times = [f"{other:.3f} s", f"{own:.3f} s", f"{other / own:.2f}x", f"{floor:.4f} s ({floor / own:.0%})"]
            rows.append([precision, f"{cells}", *times, *(f"{m:.2f} GB" for m in memory)])
            for name, side in sides.items():
                spent = side.breakdown(device)
                seconds = [f"{spent.get(part, 0):.3f}" for part in (*PARTS, *PARTS_AFTER)]
                details.append([precision, f"{cells}", name, *seconds])
            del sides
    print(f"{machine(device)}; two pictures of {options.size}x{options.size}\n")
    header = ["precision", "cells", "torchvision", "ours", "ratio", "floor", "memory torchvision", "memory ours"]
    print(table(header, rows))
    print("\nSeconds by part, from one more step of each:\n")
    print(table(["precision", "cells", "", *PARTS, *PARTS_AFTER], details))


if __name__ == "__main__":
    main(tyro.cli(Options))
