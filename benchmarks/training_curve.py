"""A short training on a GPU beside the same training on the CPU: the losses must agree.

    python -m benchmarks.training_curve [--device cuda] [--steps 40]

Both start from the same random weights, see the same pictures of discs and draw the same random numbers (on the CPU),
in fp32 without TF32; a third one computes in bf16 under autocast, as trainings on a GPU do. Losses cannot be equal for
long, because proposals whose scores differ in the last bit change places. So the RPN's losses of the first step, before
any proposal, must be equal but for rounding, each of the first ``STRICT`` losses must agree within a tolerance, and
afterwards the means of ten steps. The synchronizations of a step are counted by PyTorch's
sync debug mode, on GPUs only. Ends with status 1 if the losses do not agree.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.measure import machine, table
from benchmarks.train_step import CLASSES, batch
from maskrcnn.model import mask_rcnn_resnet_fpn

STRICT = 5
RPN_TOLERANCE = {"fp32": 1e-5, "bf16": 0.02}
STRICT_TOLERANCE = {"fp32": 0.03, "bf16": 0.1}
MEAN_TOLERANCE = 0.1
WINDOW = 10


@dataclass(frozen=True)
class Options:
    """Train for some steps on a device and on the CPU, and compare the losses."""

    device: Literal["cpu", "cuda"] = "cuda"
    steps: int = 40
    cells: int = 40
    """Cells in each of the two pictures."""
    size: int = 256
    """Side of the pictures, in pixels."""


class RandomOnCpu(TorchFunctionMode):
    """Draws ``torch.rand`` on the CPU, whatever device asks for it, so that all devices get the same numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.rand:
            return func(*args, **kwargs)
        device = kwargs.pop("device", "cpu")
        return func(*args, **kwargs).to(device)


class Training:
    """A network in training on a device; each call of :meth:`step` updates it once and returns the loss."""

    def __init__(self, options: Options, device: str, precision: str) -> None:
        torch.manual_seed(0)
        self.device, self.precision = device, precision
        model = mask_rcnn_resnet_fpn(18, CLASSES, channels=128, roi_batch_per_image=128)
        self.model = model.to(device, memory_format=torch.channels_last).train()
        images, labels = batch(options.cells, options.size)
        self.images = images.to(device).contiguous(memory_format=torch.channels_last)
        self.sizes = [tuple(images.shape[2:])] * len(images)
        self.labels = [label.to(device) for label in labels]
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.002, momentum=0.9)

    def step(self, number: int) -> dict[str, Tensor]:
        torch.manual_seed(number)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            losses = self.model(self.images, self.sizes, self.labels)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}


def main(options: Options) -> None:
    with without_tf32():
        sides = {
            name: Training(options, *name.split())
            for name in dict.fromkeys(["cpu fp32", f"{options.device} fp32", f"{options.device} bf16"])
        }
        losses: dict[str, list[float]] = {name: [] for name in sides}
        first: dict[str, dict[str, float]] = {}
        for number in range(options.steps):
            for name, side in sides.items():
                with RandomOnCpu():
                    parts = {part: float(loss) for part, loss in side.step(number).items()}
                first.setdefault(name, parts)
                losses[name].append(sum(parts.values()))
    print(f"{machine(options.device)}; two pictures of {options.size}x{options.size} with {options.cells} cells\n")
    shown = sorted({*range(min(STRICT, options.steps)), *range(WINDOW - 1, options.steps, WINDOW), options.steps - 1})
    print(table(["step", *losses], [[str(i + 1), *(f"{row[i]:.4f}" for row in losses.values())] for i in shown]))
    print(f"\n{table(['first step', *first], [[p, *(f'{row[p]:.6f}' for row in first.values())] for p in parts])}")
    faults = [fault for name, row in first.items() for fault in rpn_disagreements(first["cpu fp32"], row, name)]
    faults += [fault for name, row in losses.items() for fault in disagreements(losses["cpu fp32"], row, name)]
    print(f"\nsynchronizations of a step: {synchronizations(sides[f'{options.device} bf16'], options.steps)}")
    print("\n".join(faults) or "the losses agree")
    sys.exit(bool(faults))


def rpn_disagreements(expected: dict[str, float], actual: dict[str, float], name: str) -> list[str]:
    """Where the RPN's losses of the first step of a training ``name`` are not those that are expected, in words."""
    tolerance = RPN_TOLERANCE[name.split()[1]]
    return [
        f"{name}: {part} {actual[part]:.7f} at step 1, expected {expected[part]:.7f}"
        for part in ("loss_objectness", "loss_rpn_box_reg")
        if not abs(actual[part] - expected[part]) <= tolerance * expected[part]
    ]


def disagreements(expected: list[float], actual: list[float], name: str) -> list[str]:
    """Where the losses of a training ``name`` (device and precision) are not those that are expected, in words."""
    faults = []
    tolerance = STRICT_TOLERANCE[name.split()[1]]
    for number, (one, other) in enumerate(zip(expected[:STRICT], actual, strict=False), start=1):
        if not abs(other - one) <= tolerance * one:  # NaN is a fault too
            faults.append(f"{name}: loss {other:.4f} at step {number}, expected {one:.4f}")
    for start in range(0, len(expected) - WINDOW + 1, WINDOW):
        means = [sum(row[start : start + WINDOW]) / WINDOW for row in (expected, actual)]
        if not abs(means[1] - means[0]) <= MEAN_TOLERANCE * means[0]:
            faults.append(f"{name}: mean loss {means[1]:.4f} from step {start + 1} on, expected {means[0]:.4f}")
    return faults


def synchronizations(side: Training, number: int) -> str:
    """How often the host waits for the GPU in one step, and where."""
    if side.device != "cuda":
        return "counted on GPUs only"
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            side.step(number)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    return " ".join([str(len(waits)), *(f"{Path(w.filename).name}:{w.lineno}" for w in waits)])


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Full fp32 in convolutions and matrix products, as on the CPU."""
    convolution, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolution, matmul


if __name__ == "__main__":
    main(tyro.cli(Options))
