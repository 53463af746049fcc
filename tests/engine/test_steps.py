"""Steps of several batches, the average of the weights, and which process draws what."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskrcnn import distributed
from maskrcnn.data.sample import Batch
from maskrcnn.engine.config import OptimOptions, TrainConfig
from maskrcnn.engine.ema import WeightAverage
from maskrcnn.engine.loader import EpochSampler
from maskrcnn.engine.steps import Run, accumulate_gradients, train_epoch
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


def _run(**ema: Any) -> Run:
    torch.manual_seed(0)
    model: Any = Network()
    return Run(model, model, torch.optim.SGD(model.parameters(), 0.01), **ema)


def _gradients(run: Run) -> list[torch.Tensor]:
    return [p.grad.clone() for p in run.model.parameters() if p.grad is not None]


def test_gradients_and_losses_of_a_step_are_the_means_of_its_batches() -> None:
    run, batches = _run(), _batches(3)
    rows, gradients = [], []
    for batch in batches:
        rows.append(accumulate_gradients(run, [batch], "fp32", CPU))
        gradients.append(_gradients(run))
    row = accumulate_gradients(run, batches, "fp32", CPU)
    assert row == pytest.approx({key: np.mean([r[key] for r in rows]) for key in rows[0]})
    for ours, parts in zip(_gradients(run), zip(*gradients, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(parts).mean(0))


def _rows(run: Run, accumulate: int, batches: int) -> list[dict[str, float]]:
    config = TrainConfig(optim_options=OptimOptions(accumulate=accumulate), precision="fp32")
    loader: Any = _batches(batches)
    return list(train_epoch(run, loader, config, CPU, total_steps=10))


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    run = _run()
    rows = _rows(run, accumulate=2, batches=5)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (run.step, run.step_in_epoch, len(run.model.draws)) == (3, 3, 5)
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["loss_one"] + rows[-1]["loss_two"])


def test_processes_draw_differently_and_the_first_as_a_single_one(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        run = _run()
        _rows(run, accumulate=1, batches=2)
        draws.append(run.model.draws)
    expected = []
    for step in (0, 1):
        torch.manual_seed(int(np.random.SeedSequence([0, step]).generate_state(1)[0]))
        expected.append(torch.rand(1).item())
    assert draws[0] == expected
    assert not set(draws[0]) & set(draws[1])


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_average_is_that_of_its_definition(decay: float) -> None:
    run = _run()
    run.ema = WeightAverage(run.model, decay)
    weight = run.model.layer.weight
    expected, used = weight.detach().double().clone(), []
    for t in range(30):
        weight.data.normal_()
        run.ema.update(run.model)
        used.append(min(decay, (1 + t) / (10 + t)))
        expected = used[-1] * expected + (1 - used[-1]) * weight.detach().double()
    assert used[0] == 0.1
    assert (used[-1] == decay) == (decay == 0.2)
    torch.testing.assert_close(run.scored_model.layer.weight, expected.float(), rtol=1e-5, atol=1e-6)
    again = WeightAverage(run.model, decay)
    again.restore(run.ema.state(), Path("last.pt"))
    assert torch.equal(again.model.layer.weight, run.ema.model.layer.weight)
    assert again.updates == 30


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
