"""The helper that finds waits sees each kind of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu_waits import waits_for

READS: list[Callable[[Tensor], Any]] = [
    lambda x: x[0].item(),
    lambda x: x.tolist(),
    lambda x: bool(x[0] > 0),
    lambda x: int(x[0]),
    lambda x: [x[0]].index(x[0]),  # compares
    lambda x: float(x.sum()),
    lambda x: torch.equal(x, x + 1),
]
SIZES: list[Callable[[Tensor], Any]] = [
    lambda x: x.nonzero(),
    lambda x: torch.where(x > 0),
    lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0),
    lambda x: x.unique(),
    lambda x: x.long().bincount(),
    lambda x: torch.repeat_interleave(x.long()),
]
COPIES: list[Callable[[Tensor], Any]] = [
    lambda x: x.cpu(),
    lambda x: x.to("cpu"),
    lambda x: x.new_tensor([1, 2]),
    lambda x: torch.tensor(1.0, device=x.device),
    lambda x: torch.ones(3).to(x.device),
    lambda x: torch.ones(3).to(x.device, non_blocking=True),  # not page-locked
    lambda x: x.copy_(torch.ones(4)),
    lambda x: x[torch.tensor([0, 1])],
    lambda x: x[[0, 1]],
    lambda x: torch.cuda.current_stream().synchronize(),
]
NONE: list[Callable[[Tensor], Any]] = [
    lambda x: x.where(x > 0, 0.5).sum(),
    lambda x: x[x.argsort()][1:],
    lambda x: torch.arange(4, device=x.device) + x.new_full((), 2.0),
    lambda x: x.masked_fill(x > 0, 1).topk(2),
    lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    lambda x: x.to("cpu", non_blocking=True),
    lambda x: x.bfloat16().float(),
]


@pytest.mark.parametrize("wait", [*READS, *SIZES])
def test_of_tensors_with_values(wait: Callable[[Tensor], Any]) -> None:
    with waits_for("cpu") as waits:
        wait(torch.arange(4.0))
    assert len(waits) >= 1, waits


@pytest.mark.parametrize("wait", [*READS, *SIZES, *COPIES])
def test_on_a_gpu(wait: Callable[[Tensor], Any]) -> None:
    with waits_for("cuda") as waits:
        try:
            wait(torch.ones(4, device="cuda"))
        except Exception:  # there are no values to go on with
            assert waits
    assert len(waits) >= 1, waits


@pytest.mark.parametrize("call", NONE)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_does_not_wait(device: str, call: Callable[[Tensor], Any]) -> None:
    with waits_for(device) as waits:
        call(torch.ones(4, device=device))
    assert not waits
