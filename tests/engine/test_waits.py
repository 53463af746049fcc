"""How often a training step waits for a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.data.sample import Batch
from maskrcnn.device import Precision
from maskrcnn.engine import ema
from maskrcnn.engine.config import OptimOptions
from maskrcnn.engine.ema import MovingAverage
from maskrcnn.engine.run import Run
from maskrcnn.engine.steps import build_optimizer, train_step
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.structures import InstanceLabels
from tests.gpu_waits import waits_for

SIZES = [(64, 96), (50, 64)]


def _network(**options: object) -> MaskRCNN:
    return mask_rcnn_resnet_fpn(
        18, 2, stages=2, width=32, channels=32, box_hidden=16, anchor_sizes=((8, 4), (16,), (32,)), **options
    ).train()


def _batch(cells: int) -> Batch:
    """Two pictures of different sizes, the first with ``cells`` cells, the second without."""
    planes = torch.zeros(2, 64, 96, dtype=torch.int32)
    for number in range(cells):
        y, x = 20 * (number // 4), 20 * (number % 4)
        planes[number % 2, y : y + 16, x : x + 16] = number + 1
    labels = [InstanceLabels.from_planes(planes, (1, 2)), InstanceLabels.empty(64, 96)]
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    return Batch(images, SIZES, labels, ["a", "b"], [1, 2])


def _run(model: MaskRCNN, device: str, optimizer: str = "adamw", precision: Precision = "fp32") -> Run:
    options = OptimOptions(optimizer=optimizer)  # type: ignore[arg-type]
    average = MovingAverage(model, 0.9)
    return Run(Path(), torch.device(device), precision, {}, model, model, build_optimizer(model, options), average)


def _check(waits: list[str], batches: int = 1) -> None:
    """Once per batch, for the number of samples, and once per step, for the losses."""
    expected = ["model/rois.py tolist"] * batches + ["engine/steps.py tolist"]
    assert [f"{wait.split(':')[0]} {wait.split()[1]}" for wait in waits] == expected, "\n".join(waits)


@pytest.mark.parametrize(("cells", "batches"), [(12, 1), (0, 1), (12, 2)])
def test_forward_backward_and_update(cells: int, batches: int) -> None:
    run, batch = _run(_network(mask_loss="bce+dice"), "cpu"), _batch(cells)
    with waits_for("cpu") as waits:
        row = train_step(run, [batch] * batches, 1e-4, clip_norm=1.0)
    assert (row["loss_mask"] > 0) == (cells > 0)
    _check(waits, batches)


# fused SGD does not run without values
@pytest.mark.parametrize(("norm", "optimizer"), [("group", "adamw"), ("frozen_batch", "adam")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # autocast is not the same on all devices
def test_copies_to_a_gpu(precision: Precision, norm: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Already in the first step, with the batch in page-locked memory, as the loader leaves it."""

    def backward(loss: Tensor) -> None:  # the engine needs a driver
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    batch = _batch(12)
    with waits_for("cuda") as waits:
        with torch.device("cuda"):
            model, average = _network(norm=norm), _network(norm=norm)
        monkeypatch.setattr(
            ema, "copy", SimpleNamespace(deepcopy=lambda _: average)
        )  # fails for tensors without values
        run = _run(model, "cuda", optimizer, precision)
        monkeypatch.setattr(Tensor, "backward", backward)
        assert all(parameter.is_cuda for parameter in nn.ModuleList([model, run.scored_model]).parameters())
        waits.clear()
        train_step(run, [batch.pin_memory()], 1e-4, clip_norm=1.0)
    _check(waits)
