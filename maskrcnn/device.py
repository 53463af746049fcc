"""Which device, precision and how many processes a run uses."""

from __future__ import annotations

import os

import torch

from maskrcnn.errors import InputError
from maskrcnn.ops.library import CUDA_LIBRARY


def choose_device(name: str) -> torch.device:
    """``auto`` (cuda where there is one), ``cpu`` or ``cuda``; raises InputError where cuda is asked for in vain."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda; no CUDA device is available to this PyTorch")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not CUDA_LIBRARY.is_file():
        raise InputError(
            "--device: there is a GPU, but the CUDA kernels were not built; install the CUDA toolkit or "
            "nvidia-cuda-nvcc and run python setup.py build_ext --inplace, or choose --device cpu"
        )
    return torch.device(name)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether autocast to bfloat16 is on. ``auto``: on GPUs and CPUs with bfloat16 units."""
    if precision == "auto" and device.type == "cpu":
        return cpu_computes_bfloat16()
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def cpu_computes_bfloat16() -> bool:
    """Whether the processor has dot products of bfloat16 (AVX-512 BF16 or AMX), by PyTorch's own account.

    Elsewhere bfloat16 is converted to float32 and back, which is slower than float32. The queries are not public: a
    PyTorch without them is taken for a processor without the units.
    """
    queries = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(query is not None and query() for query in queries)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of ``precision`` (``auto``, ``fp32`` or ``bf16``) on ``device``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16(precision, device))


def default_workers(device: torch.device) -> int:
    """On the CPU the network needs every core; on a GPU up to 8 processes prepare batches."""
    return min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0
