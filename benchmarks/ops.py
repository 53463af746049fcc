"""Time of the ops, compared to torchvision and to the machine's peak performance.

    python -m benchmarks.ops [--device cuda] [--only nms]

Both sides run alternately in one process with the same threads, each in its best memory layout. Torchvision's RoIAlign
does not support bfloat16: it gets float32 and its result is rounded, as under autocast. "floor" is the
time for the op's bytes (read once, written once) at the measured copy bandwidth, "bandwidth" what ours reaches of it.
"memory" is the op's peak memory, results included. Another table compares NMS with one thread and with all.

torchvision's mask targets and pasted masks are compared with ours in its convention (``aligned=False``); a second table
compares that convention with the exact one, which the network uses. There the fastest of up to 1,000 rounds counts,
since the difference is smaller than the influence of other programs on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
import tyro
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from benchmarks.measure import copy_bandwidth, in_turns, machine, peak_extra_memory, side_by_side, table
from maskrcnn import ops

PICTURE = 1024  # side of the picture that masks are encoded for


@dataclass
class Case:
    """One row: the same work by both, and the bytes that must move; ``exact``: ours in the other convention."""

    op: str
    size: str
    theirs: Callable[[], object]
    ours: Callable[[], object]
    floor_bytes: float
    exact: Callable[[], object] | None = None


def cells(count: int, extent: float, side: float = 30.0, seed: int = 0) -> Tensor:
    """Boxes of cells spread over a picture: float32 [count, 4]."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * (extent - side)
    return torch.cat([corner, corner + side * (0.5 + torch.rand(count, 2, generator=generator))], dim=1).clamp(
        max=extent
    )


def nms_cases(device: str) -> list[Case]:
    bytes_of_a_box = 16 + 4 + 8  # corners and score in, index out
    cases = [
        Case("nms", f"{count:,} boxes", *nms_pair(count, device), count * bytes_of_a_box)
        for count in (1_000, 10_000, 50_000)
    ]
    for count in (1_000, 10_000):
        pair = nms_pair(count, device, extent=45.0)
        cases.append(Case("nms", f"{count:,} boxes in one heap", *pair, count * bytes_of_a_box))
    return cases


def nms_pair(count: int, device: str, extent: float | None = None) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """NMS of ``count`` boxes by torchvision and by us; without an extent, over a picture that grows with them."""
    boxes = cells(count, extent or 30.0 * count**0.5).to(device)  # one corner in 30 x 30 pixels
    scores = torch.rand(count, generator=torch.Generator().manual_seed(1)).to(device)
    return lambda: torchvision.ops.nms(boxes, scores, 0.5), lambda: ops.nms(boxes, scores, 0.5)


def nms_thread_rows() -> list[list[str]]:
    """NMS of the boxes of a slide, all of one class, with one thread and with all. (For torchvision it takes hours.)"""
    everyone, rows = torch.get_num_threads(), []
    for count in (10_000, 100_000, 1_000_000):
        _, run = nms_pair(count, "cpu")

        def with_threads(threads: int, run: Callable[[], Tensor] = run) -> None:
            torch.set_num_threads(threads)
            run()

        one, all_ = side_by_side([partial(with_threads, 1), partial(with_threads, everyone)])
        rows.append([f"{count:,}", f"{one * 1e3:.2f} ms", f"{all_ * 1e3:.2f} ms", f"{one / all_:.2f}x"])
    return rows


def roi_align_cases(device: str) -> list[Case]:
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        for count, bins in ((512, 7), (128, 14), (64, 7)):
            cases += _roi_align_pair(count, bins, dtype, device)
    return cases


def _roi_align_pair(count: int, bins: int, dtype: torch.dtype, device: str, channels: int = 256) -> list[Case]:
    """Forward and backward over the same features."""
    features = torch.randn(2, channels, 128, 128, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    last = features.to(memory_format=torch.channels_last)
    boxes = cells(count, 512.0, 60.0).to(device)
    rois = torch.cat([(torch.arange(count, device=device) % 2)[:, None].float(), boxes], dim=1)
    arguments = (rois, bins, 0.25, 2)
    name = "float32" if dtype == torch.float32 else "bfloat16"
    size = f"{count} RoIs {bins}x{bins}, {channels} channels, {name}"
    moved = dtype.itemsize * (count * bins * bins * channels + features.numel())

    def theirs(features: Tensor, *arguments: object) -> Tensor:
        return torchvision.ops.roi_align(features.float(), *arguments).to(dtype)

    return [
        Case(
            "roi_align forward",
            size,
            lambda: theirs(features, *arguments),
            lambda: ops.roi_align(last, *arguments),
            moved,
        ),
        Case(
            "roi_align backward",
            size,
            _backward(theirs, features, arguments),
            _backward(ops.roi_align, last, arguments),
            moved,
        ),
    ]


def _backward(op: Callable[..., Tensor], features: Tensor, arguments: tuple) -> Callable[[], object]:
    """The backward pass alone, its graph kept."""
    leaf = features.detach().requires_grad_()
    out = op(leaf, *arguments)
    upstream = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaf, upstream, retain_graph=True)


def match_cases(device: str) -> list[Case]:
    strides = [(s, (4, 8) if s == 4 else (2 * s,)) for s in (4, 8, 16, 32, 64)]
    anchors = torch.cat([_anchors(stride, sizes) for stride, sizes in strides])
    anchors = anchors[torch.randperm(len(anchors), generator=torch.Generator().manual_seed(0))[:87_000].sort().values]
    anchors, matcher = anchors.to(device), Matcher(0.7, 0.3, allow_low_quality_matches=True)
    cases = []
    for count in (50, 500):
        targets = cells(count, 512.0).to(device)
        cases.append(
            Case(
                "match_boxes",
                f"{len(anchors):,} anchors, {count} cells",
                lambda t=targets: matcher(torchvision.ops.box_iou(t, anchors)),
                lambda t=targets: ops.match_boxes(anchors, t, 0.7, 0.3, True),
                len(anchors) * (16 + 8),
            )
        )
    return cases


def _anchors(stride: int, sizes: tuple[int, ...]) -> Tensor:
    """Anchors of one level of a 512-pixel picture, four shapes of each size."""
    centers = torch.arange(0, 512, stride, dtype=torch.float32)
    shapes = [(s / r**0.5, s * r**0.5) for s in sizes for r in (0.5, 1.0, 1.5, 2.0)]
    half = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes])
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return (torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) + half).reshape(-1, 4)


def crop_cases(device: str) -> list[Case]:
    cases = []
    for count, rois in ((50, 128), (500, 128)):
        boxes = cells(count, 512.0)
        plane = torch.zeros(1, 512, 512, dtype=torch.int32)
        for number, (x1, y1, x2, y2) in enumerate(boxes.int().tolist(), start=1):
            plane[0, y1:y2, x1:x2] = number
        ids = torch.arange(1, count + 1).repeat(rois)[:rois]
        masks = (plane == torch.arange(1, count + 1)[:, None, None]).to(torch.uint8).to(device)
        sampled, plane, ids = boxes[ids - 1].to(device), plane.to(device), ids.to(device)
        index = torch.zeros(rois, dtype=torch.int64, device=device)
        owner = ids - 1
        pixels = float(((sampled[:, 2:] - sampled[:, :2]).prod(1)).sum())
        ours = partial(ops.crop_labels, plane, sampled, index, ids, 28)
        cases.append(
            Case(
                "crop_labels",
                f"{rois} RoIs of {count} cells in 512x512",
                lambda m=masks, s=sampled, o=owner: project_masks_on_boxes(m, s, o, 28),
                partial(ours, aligned=False),
                4 * (rois * 28 * 28 + pixels),
                ours,
            )
        )
    return cases


def conv_cases(device: str) -> list[Case]:
    """Against PyTorch's convolution in the same layout; on a GPU the network uses that one."""
    cases = []
    for batch, channels, side in ((2, 256, 128), (64, 256, 14), (2, 64, 128)) if device == "cpu" else ():
        x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
        upstream, leaf = torch.randn_like(x), x.clone().requires_grad_()
        outs = (F.conv2d(leaf, weight, padding=1), ops.conv3x3([leaf], weight)[0])
        gradient = partial(torch.autograd.grad, inputs=(leaf, weight), grad_outputs=upstream, retain_graph=True)
        theirs, ours = (partial(gradient, out) for out in outs)
        size, moved = f"{batch} x {side}x{side}, {channels} channels", 8.0 * x.numel() + 4 * weight.numel()
        constant = weight.detach()
        cases += [
            Case(
                "conv3x3 forward (PyTorch)",
                size,
                lambda x=x, w=constant: F.conv2d(x, w, padding=1),
                lambda x=x, w=constant: ops.conv3x3([x], w),
                moved,
            ),
            Case("conv3x3 backward (PyTorch)", size, theirs, ours, 2 * moved),
        ]
    return cases


def norm_cases(device: str) -> list[Case]:
    """Against PyTorch's norm and a ReLU in place, in the same layout: maps of a training step, with 32 groups."""
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        for batch, channels, side in ((4, 64, 128), (4, 128, 64), (80, 128, 14), (2, 256, 128)):
            x = torch.randn(batch, channels, side, side).to(device, dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = (torch.randn(channels, device=device).requires_grad_() for _ in range(2))
            leaf, upstream = x.clone().requires_grad_(), torch.randn_like(x)

            def theirs(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
                return F.relu(F.group_norm(x, 32, weight.to(x.dtype), bias.to(x.dtype)), inplace=True)

            def ours(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
                return ops.group_norm(x, 32, weight, bias, relu=True)

            runs = [partial(op, x, weight.detach(), bias.detach()) for op in (theirs, ours)]
            gradient = partial(
                torch.autograd.grad, inputs=(leaf, weight, bias), grad_outputs=upstream, retain_graph=True
            )
            gradients = [partial(gradient, op(leaf)) for op in (theirs, ours)]
            size = (
                f"{batch} x {side}x{side}, {channels} channels, {'float32' if dtype == torch.float32 else 'bfloat16'}"
            )
            moved = 2.0 * x.numel() * dtype.itemsize
            cases.append(Case("group_norm, ReLU forward (PyTorch)", size, *runs, moved))
            cases.append(Case("group_norm, ReLU backward (PyTorch)", size, *gradients, 1.5 * moved))
    return cases


def rle_cases(device: str) -> list[Case]:
    cases = []
    for count in (300, 100):
        theirs, mine = rle_pair(count, device)
        same = sum(a == b for a, b in zip(theirs(), mine(), strict=True))
        size = f"{count} masks in {PICTURE}x{PICTURE} ({same} of {count} equal)"
        exact = partial(mine, aligned=True)
        cases.append(Case("masks_to_rle", size, theirs, mine, 4.0 * count * 28 * 28, exact))
    return cases


def rle_pair(count: int, device: str) -> tuple[Callable[[], list], Callable[[], list]]:
    """Run lengths of ``count`` predicted masks in one picture, by torchvision with pycocotools and by us."""
    noise = torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    masks = F.interpolate(noise, size=(28, 28), mode="bicubic").sigmoid()[:, 0].to(device)
    boxes = cells(count, float(PICTURE), 40.0).to(device)
    size = (PICTURE, PICTURE)

    def theirs() -> list:
        pasted = (paste_masks_in_image(masks[:, None], boxes, size)[:, 0] > 0.5).cpu().numpy()
        return [coco_mask.encode(np.asfortranarray(one, dtype=np.uint8)) for one in pasted]

    return theirs, partial(ops.masks_to_rle, masks, boxes, size, aligned=False)


GROUPS = {
    "nms": nms_cases,
    "roi_align": roi_align_cases,
    "match_boxes": match_cases,
    "crop_labels": crop_cases,
    "masks_to_rle": rle_cases,
    "conv3x3": conv_cases,
    "group_norm": norm_cases,
}


@dataclass(frozen=True)
class Options:
    """Time the ops against torchvision's."""

    device: Literal["cpu", "cuda"] = "cpu"
    only: Annotated[str | None, tyro.conf.arg(metavar="OP")] = None
    """One of nms, roi_align, match_boxes, crop_labels, masks_to_rle, conv3x3, group_norm; default: all."""
    budget: float = 3.0
    """Seconds to spend on the slower side of each comparison, at least three rounds."""


def main(options: Options) -> None:
    bandwidth = copy_bandwidth(options.device)
    rows, conventions = [], []
    for name, make in GROUPS.items():
        if options.only not in (None, name):
            continue
        for case in make(options.device):
            theirs, ours = side_by_side([case.theirs, case.ours], options.device, options.budget)
            floor = case.floor_bytes / bandwidth
            memory = [peak_extra_memory(run, options.device) / 1e6 for run in (case.theirs, case.ours)]
            times = [f"{theirs * 1e3:.2f} ms", f"{ours * 1e3:.3f} ms", f"{theirs / ours:.1f}x", f"{floor * 1e3:.3f} ms"]
            times.append(f"{case.floor_bytes / ours / 1e9:.1f} GB/s ({floor / ours:.0%})")
            rows.append([case.op, case.size, *times, f"{memory[0]:.1f} MB", f"{memory[1]:.1f} MB"])
            if case.exact is not None:
                rounds = in_turns([case.ours, case.exact], options.device, options.budget, most=1000)
                old, exact = (min(column) for column in zip(*rounds, strict=True))
                both = [f"{seconds * 1e3:.3f} ms" for seconds in (old, exact)]
                conventions.append([case.op, case.size, *both, f"{old / exact:.2f}x"])
    print(f"{machine(options.device)}; copy bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    header = ["op", "size", "torchvision", "ours", "ratio", "floor", "bandwidth"]
    print(table([*header, "memory torchvision", "memory ours"], rows))
    if options.device == "cpu" and options.only in (None, "nms"):
        print()
        print(
            table(["boxes of one class", "1 thread", f"{torch.get_num_threads()} threads", "ratio"], nms_thread_rows())
        )
    if conventions:
        print()
        print(table(["op", "size", "torchvision's convention", "exact", "ratio"], conventions))


if __name__ == "__main__":
    main(tyro.cli(Options))
