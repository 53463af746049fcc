"""The precision ``auto``, and the allocator's setting."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from maskrcnn.device import autocast, choose_device, use_bfloat16
from maskrcnn.errors import InputError

CPU = torch.device("cpu")
QUERIES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_auto_is_bfloat16_on_processors_that_compute_in_it(
    monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool
) -> None:
    for name, answer in zip(QUERIES, (avx512, amx), strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    assert use_bfloat16("auto", CPU) == (avx512 or amx)
    with autocast("auto", CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if avx512 or amx else torch.float32)
    assert use_bfloat16("bf16", CPU)
    assert not use_bfloat16("fp32", CPU)


def test_auto_is_float32_where_pytorch_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUERIES:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not use_bfloat16("auto", CPU)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "--device is 'gpu'; expected auto, cpu, cuda or cuda:1"),
        ("meta", "--device is 'meta'"),
        ("cuda:", "--device is 'cuda:'"),
        (None, "--device is 'None'"),
        ("cuda:999", r"--device is cuda:999; this PyTorch has \d+ CUDA devices"),
    ],
)
def test_devices_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        choose_device(name)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept() -> None:
    script = """
import resource, torch
from maskrcnn.allocator import keep_freed_memory

def faults():
    for _ in range(50):  # until all have found their places
        torch.empty(1 << 24).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(1 << 24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory()
print(faults())
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    by_default, kept = map(int, out.split())
    assert by_default > 100
    assert kept < by_default / 10
