"""Steps of several batches, the moving average of the weights, and the random numbers of each process."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn import distributed
from maskrcnn.data.sample import Batch
from maskrcnn.engine.ema import MovingAverage
from maskrcnn.engine.loader import EpochSampler, batches
from maskrcnn.engine.run import Run
from maskrcnn.engine.steps import NonFiniteLossError, seed_step, train_step
from maskrcnn.engine.train import train
from maskrcnn.errors import InputError
from tests.conftest import tiny_config

CPU = torch.device("cpu")


class Network(nn.Module):
    """Two losses of a picture's mean; remembers what the step's generator draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)
        self.draws: list[float] = []

    def forward(self, images: torch.Tensor, sizes: object, labels: object) -> dict[str, torch.Tensor]:
        self.draws.append(torch.rand(1).item())
        one, two = self.layer(images.float().mean((1, 2, 3))[:, None]).pow(2).mean(0)
        return {"loss_one": one, "loss_two": two}


def _batches(count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 9, (count, 2, 3, 4, 4), dtype=np.uint8))
    return [Batch(image, [(4, 4)] * 2, [], ["a", "b"], [1, 2]) for image in images]


def _run() -> Run:
    torch.manual_seed(0)
    model: Any = Network()
    return Run(Path(), CPU, "fp32", {}, model, model, torch.optim.SGD(model.parameters(), 0.01))


def _gradients(run: Run) -> list[torch.Tensor]:
    return [p.grad.clone() for p in run.model.parameters() if p.grad is not None]


def test_gradients_and_losses_of_a_step_are_the_means_of_its_batches() -> None:
    run, batches = _run(), _batches(3)
    rows, gradients = [], []
    for batch in batches:
        rows.append(train_step(run, [batch], lr=0.0, clip_norm=0.0))
        gradients.append(_gradients(run))
    row = train_step(run, batches, lr=0.0, clip_norm=0.0)
    assert row.keys() == {"loss", "loss_one", "loss_two", "grad_norm"}
    assert row["grad_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in _gradients(run)]).norm()))
    losses = [key for key in row if key != "grad_norm"]
    assert [row[key] for key in losses] == pytest.approx([np.mean([r[key] for r in rows]) for key in losses])
    for ours, parts in zip(_gradients(run), zip(*gradients, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(parts).mean(0))


def test_batches_are_taken_in_groups() -> None:
    groups = list(batches(_batches(5), 2))  # type: ignore[arg-type]
    assert [len(group) for group in groups] == [2, 2, 1]
    run = _run()
    rows = [train_step(run, group, lr=0.1, clip_norm=1.0) for group in groups]
    assert (run.step, len(run.model.draws)) == (3, 5)  # type: ignore[arg-type]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["loss_one"] + rows[-1]["loss_two"])


def test_a_gradient_is_clipped_to_its_norm() -> None:
    run = _run()
    before = [p.detach().clone() for p in run.model.parameters()]
    row = train_step(run, _batches(1), lr=1.0, clip_norm=1e-3)
    assert row["grad_norm"] > 1e-3
    moved = torch.cat([(p.detach() - old).flatten() for p, old in zip(run.model.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("clip_norm", [0.0, 10.0])
@pytest.mark.parametrize(("loss", "gradient", "what"), [(1.0, math.inf, "gradient"), (math.nan, 1.0, "loss")])
def test_a_step_that_is_not_finite_leaves_the_weights(
    clip_norm: float, loss: float, gradient: float, what: str
) -> None:
    """Also where the loss is finite and its gradient alone is not, as at the square root of 0."""
    run = _run()
    run.ema = MovingAverage(run.model, 0.9)

    def forward(*args: object) -> dict[str, torch.Tensor]:
        weight = run.model.layer.weight  # type: ignore[union-attr]
        value = weight.sum() * 0 + loss  # type: ignore[operator]
        value.register_hook(lambda grad: grad * gradient)
        return {"loss_one": value}

    run.network.forward = forward  # type: ignore[method-assign]
    before = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(NonFiniteLossError, match=rf"the {what} is not finite at step 1 .* on the pictures a, b$"):
        train_step(run, _batches(1), lr=0.1, clip_norm=clip_norm)
    assert all(torch.equal(p, old) for p, old in zip(run.model.parameters(), before, strict=True))
    assert (run.step, run.ema.updates) == (0, 0)


def test_processes_draw_differently_and_the_first_as_a_single_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        for step in (0, 1):
            seed_step(0, step)
            draws.append(torch.rand(1).item())
    expected = []
    for step in (0, 1):
        torch.manual_seed(int(np.random.SeedSequence([0, step]).generate_state(1)[0]))
        expected.append(torch.rand(1).item())
    assert draws[:2] == expected
    assert len(set(draws)) == 4


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_average_is_that_of_its_definition(decay: float) -> None:
    run = _run()
    run.ema = MovingAverage(run.model, decay)
    weight: Any = run.model.layer.weight  # type: ignore[union-attr]
    expected, used = weight.detach().double().clone(), []
    for t in range(30):
        weight.data.normal_()
        run.ema.update(run.model)
        used.append(min(decay, (1 + t) / (10 + t)) if t else 0.0)
        expected = used[-1] * expected + (1 - used[-1]) * weight.detach().double()
    assert (used[-1] == decay) == (decay == 0.2)
    average: Any = run.ema.module
    torch.testing.assert_close(average.layer.weight, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pictures", "batch_size", "processes"), [(12, 2, 3), (11, 2, 2), (7, 1, 3), (2, 1, 5)])
def test_processes_share_the_batches_of_one(pictures: int, batch_size: int, processes: int) -> None:
    one = EpochSampler(np.ones(pictures), batch_size * processes, seed=4)
    shares = [EpochSampler(np.ones(pictures), batch_size, 4, rank, processes) for rank in range(processes)]
    for sampler in (one, *shares):
        sampler.set_epoch(3, skip_batches=0)
        assert len(sampler) == len(one)
    epochs = [list(sampler) for sampler in shares]
    for whole, *parts in zip(one, *epochs, strict=True):
        dealt = [draw for turn in itertools.zip_longest(*parts) for draw in turn if draw is not None]
        assert dealt[: len(whole)] == whole
        assert len(dealt) == max(len(whole), processes)  # none goes without a picture
        assert {index for index, _ in dealt[len(whole) :]} <= set(range(pictures))


@pytest.mark.parametrize(("change", "message"), [({"accumulate": 0}, "--accumulate is 0"), ({"ema": 1.0}, "--ema")])
def test_options_that_no_step_can_use(tmp_path: Path, change: dict, message: str) -> None:
    config = tiny_config(tmp_path, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(config, optim_options=dataclasses.replace(config.optim_options, **change)))
