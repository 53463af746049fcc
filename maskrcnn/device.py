"""Choice of device, precision and number of loader processes."""

from __future__ import annotations

import os
import re
from typing import Literal

import torch

from maskrcnn.errors import InputError

Precision = Literal["auto", "fp32", "bf16"]
"""auto: bf16 autocast on devices with bfloat16 units."""


def choose_device(name: str) -> torch.device:
    """The device named ``auto`` (cuda if available, else cpu), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises InputError for other names, and if CUDA or the GPU of that number is not available."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", str(name)):
        raise InputError(f"--device is {str(name)[:100]!r}; expected auto, cpu, cuda or cuda:1")
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise InputError(f"--device is {name}; this PyTorch has {torch.cuda.device_count()} CUDA devices")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda; no CUDA device is available to this PyTorch")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to enable autocast to bfloat16. ``auto``: on GPUs and CPUs with bfloat16 units."""
    if precision == "auto" and device.type == "cpu":
        return cpu_computes_bfloat16()
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def cpu_computes_bfloat16() -> bool:
    """Whether PyTorch reports that the processor has bfloat16 dot products (AVX-512 BF16 or AMX).

    Other processors convert bfloat16 to float32 and back, which is slower than float32. The queries are private: where
    PyTorch does not have them, the answer is False.
    """
    queries = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(query is not None and query() for query in queries)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of ``precision`` (``auto``, ``fp32`` or ``bf16``) on ``device``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16(precision, device))


def default_workers(device: torch.device) -> int:
    """Number of loader processes: up to 8 with a GPU; 0 on the CPU, where the network needs every core."""
    return min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0
