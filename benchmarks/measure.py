"""Timing side by side, memory at its peak, and what the machine can do at best."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

Run = Callable[[], object]


def seconds(run: Run, device: str = "cpu") -> float:
    """Wall-clock time of one call, until the device has finished it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(runs: Sequence[Run], device: str = "cpu", budget: float = 3.0, most: int = 50) -> list[float]:
    """Median seconds of each of several calls, taken in turns, so that a slow moment of the machine hits all of them.

    Args:
        runs: calls to time; each is called once before, to warm up.
        budget: seconds to spend on the slowest of them, at least three rounds.
    """
    slowest = max(seconds(run, device) for run in runs)
    rounds = int(min(most, max(3, budget / max(slowest, 1e-6))))
    times = [[seconds(run, device) for run in runs] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def copy_bandwidth(device: str = "cpu", megabytes: int = 256) -> float:
    """Bytes a second, read and written, of a copy too large for the caches."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    (median,) = side_by_side([lambda: target.copy_(source)], device)
    return 2 * source.numel() * 4 / median


def peak_extra_memory(run: Run, device: str = "cpu") -> float:
    """Bytes that a call needs at its peak besides what was there before (its result included).

    On the CPU the resident memory of the process is watched (Linux), after freed pages have been given back; numbers
    below some 100 KB are noise.
    """
    run()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _status("VmRSS")
    result = run()
    after = _status("VmHWM")
    del result
    return max(0, after - before)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def machine(device: str = "cpu") -> str:
    """What the numbers were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    flags = (
        "AVX-512" if torch.backends.cpu.get_cpu_capability() == "AVX512" else torch.backends.cpu.get_cpu_capability()
    )
    text = f"{cpu} ({flags}), {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {text}" if device == "cuda" else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
