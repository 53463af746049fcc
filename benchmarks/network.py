"""Cost of several networks: file size, time of a training step, and time per megapixel in inference.

python -m benchmarks.network [--threads 2] [--precisions bf16 fp32]

Each row changes one option of the network that comes with the package. Pictures contain discs of the canonical
diameter, 30 pixels, as dense as real cells.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from skimage.draw import disk

from benchmarks.measure import machine, table
from maskrcnn.allocator import keep_freed_memory
from maskrcnn.data.sample import Batch, Sample, collate
from maskrcnn.device import autocast
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import InstanceLabels

DIAMETER, CELLS_PER_MEGAPIXEL = 30, 500
PACKAGED: dict[str, Any] = {
    "depth": 18,
    "num_classes": 1,
    "stages": 3,
    "channels": 128,
    "box_hidden": 512,
    "anchor_sizes": ((16, 8), (32,), (64,), (128,)),
    "anchor_ratios": (0.5, 1.0, 2.0),
    "roi_batch_per_image": 96,
    "roi_positive_fraction": 0.2,
    "mask_loss": "bce+dice",
}
NETWORKS: dict[str, dict[str, Any]] = {
    "as packaged": {},
    "four ResNet stages, P6": {"stages": 4, "anchor_sizes": ((16, 8), (32,), (64,), (128,), (256,))},
    "256 channels": {"channels": 256},
    "64 channels": {"channels": 64},
    "two mask convolutions": {"mask_convs": 2},
    "box head of 1024": {"box_hidden": 1024},
    "ResNet width 32": {"width": 32},
    "ResNet-34": {"depth": 34},
}


@dataclass(frozen=True)
class Options:
    """Time networks side by side."""

    precisions: tuple[str, ...] = ("bf16", "fp32")
    threads: int = 2
    rounds: int = 4
    """Steps and pictures of each network, run alternately; the fastest counts."""
    batch: int = 4
    crop: int = 256
    side: int = 1024
    """Of the picture that is predicted."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    batch = collate([picture(options.crop, seed) for seed in range(options.batch)])
    whole = picture(options.side, 0)
    rows = []
    for precision in options.precisions:
        networks = {name: mask_rcnn_resnet_fpn(**(PACKAGED | change)) for name, change in NETWORKS.items()}
        steps: dict[str, list[float]] = {name: [] for name in networks}
        pictures: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(options.rounds):
            for name, network in networks.items():
                steps[name].append(step_seconds(network, batch, precision))
                pictures[name].append(picture_seconds(network, whole, precision))
        megapixels = options.side**2 / 1e6
        for name, network in networks.items():
            megabytes = sum(value.numel() for value in network.state_dict().values()) * 2 / 1e6
            row = [name, precision, f"{megabytes:.1f}", f"{min(steps[name]):.2f}"]
            rows.append([*row, f"{min(pictures[name]) / megapixels:.2f}"])
    header = [
        "network",
        "precision",
        "MB in bf16",
        f"step of {options.batch} crops of {options.crop}, s",
        "s per megapixel",
    ]
    print(f"{machine()}; python -m benchmarks.network {' '.join(sys.argv[1:])}\n\n{table(header, rows)}")


def picture(side: int, seed: int) -> Sample:
    """Discs at random places, with noise."""
    rng = np.random.default_rng(seed)
    plane = np.zeros((side, side), np.int32)
    for number in range(1, round(CELLS_PER_MEGAPIXEL * side**2 / 1e6) + 1):
        radius = DIAMETER / 2 * rng.uniform(0.7, 1.4)
        plane[disk(rng.uniform(0, side, 2), radius, shape=plane.shape)] = number
    grey = np.where(plane > 0, 160, 20) + rng.integers(0, 60, plane.shape)
    pixels = torch.from_numpy(grey.astype(np.uint8))[:, :, None].repeat(1, 1, 3)
    return Sample(pixels, InstanceLabels.from_planes(torch.from_numpy(plane)[None], [1]), "discs", 1)


def step_seconds(network: MaskRCNN, batch: Batch, precision: str) -> float:
    """Forward, backward and an update of the weights."""
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    with autocast(precision, torch.device("cpu")):
        losses = network(images, batch.sizes, batch.labels)
    sum(losses.values()).backward()
    optimizer.step()
    return time.perf_counter() - start


def picture_seconds(network: MaskRCNN, sample: Sample, precision: str) -> float:
    """From pixels to run lengths, at the picture's own scale: of an untrained network, so all that costs is kept.

    Its scores say nothing: the threshold is put where it finds as many cells as there are.
    """
    predictor = Predictor(network, None, ["cell"], torch.device("cpu"), precision, diameter=DIAMETER)
    scores = predictor(sample.image, diameter="none").scores
    threshold = float(scores.quantile(max(0, 1 - len(sample.labels) / max(1, len(scores)))))
    predictor = predictor.with_limits(replace(network.limits, score_threshold=threshold))
    start = time.perf_counter()
    predictor(sample.image, diameter="none").to_coco(1)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
