"""Measurement of time, peak memory and the machine's peak performance."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.data.dataset import CellDataset
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.datasets import Datasets, build_datasets
from maskrcnn.engine.resume import check_pictures

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


def in_turns(runs: Sequence[Run], device: str = "cpu", budget: float = 3.0, most: int = 50) -> list[list[float]]:
    """Seconds of several calls, run alternately, so that slow phases of the machine affect all of them.

    Args:
        runs: calls to time; each is called once before, to warm up.
        budget: seconds to spend on the slowest of them, at least three rounds.

    Returns:
        For each round the seconds of each call.
    """
    slowest = max(seconds(run, device) for run in runs)
    rounds = int(min(most, max(3, budget / max(slowest, 1e-6))))
    return [[seconds(run, device) for run in runs] for _ in range(rounds)]


def side_by_side(runs: Sequence[Run], device: str = "cpu", budget: float = 3.0, most: int = 50) -> list[float]:
    """Median seconds of each of several calls, timed :func:`in_turns`."""
    return [statistics.median(column) for column in zip(*in_turns(runs, device, budget, most), strict=True)]


class Stopwatch:
    """Time spent in named parts of a program; time in nested parts counts only for the inner one."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            self._wait()
            elapsed = time.perf_counter() - start
            self.spent[name] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed

    def wrap(self, owner: Any, attribute: str, name: str) -> Callable[[], None]:
        """Time every call of ``owner.attribute``; returns a function that undoes it."""
        original = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)
        return lambda: setattr(owner, attribute, original)

    @contextlib.contextmanager
    def wrapped(self, parts: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Context in which every call of these functions is timed: (owner, attribute, name of the part)."""
        undo = [self.wrap(*part) for part in parts]
        try:
            yield
        finally:
            for restore in reversed(undo):
                restore()

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def copy_bandwidth(device: str = "cpu", megabytes: int = 256) -> float:
    """Bytes per second, read and written, of a copy that does not fit in the caches."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    (median,) = side_by_side([lambda: target.copy_(source)], device)
    return 2 * source.numel() * 4 / median


def convolution_rate(precision: str, device: str) -> float:
    """Operations per second of a 3x3 convolution of the mask head, forward, in channels_last."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    conv = nn.Conv2d(256, 256, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(64, 256, 28, 28, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        (seconds,) = side_by_side([lambda: conv(x)], device, budget=2.0)
    return 2 * 9 * 256 * 256 * 64 * 28 * 28 / seconds


def operations(run: Run) -> float:
    """Number of multiplications and additions of convolutions and linear layers in a call, backward pass included."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def peak_extra_memory(run: Run, device: str = "cpu") -> float:
    """Peak of the additional memory of a call in bytes, its result included.

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
    """Description of the machine."""
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
    return "\n".join(row_of(cells) for cells in (header, ["---"] * len(header), *rows))


def row_of(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def datasets_of_run(checkpoint: Path, data: Sequence[Path] = (), merge_classes: str | None = None) -> Datasets:
    """The training and validation pictures of the run that wrote ``checkpoint``; InputError if they have changed.

    Args:
        data: the run's data folders, if they have moved.
        merge_classes: name of the one class that all cells get where the run told them apart; the split stays the same.
    """
    contents = load_checkpoint(checkpoint)
    config = TrainConfig.from_dict(contents["config"])
    options = config.data_options
    merged = options.merge_classes or merge_classes
    moved = dataclasses.replace(options, data=tuple(data) or options.data, merge_classes=merged)
    datasets = build_datasets(dataclasses.replace(config, data_options=moved), checkpoint.parent)
    check_pictures({"train": datasets.train.names, "val": datasets.val.names}, contents, str(checkpoint))
    return datasets


def of_source(dataset: CellDataset, source: str, most: int | None = None) -> CellDataset:
    """The first ``most`` pictures of a source, without augmentation."""
    chosen = [index for index, own in enumerate(dataset.sources) if own == source][:most]
    if not chosen:
        raise SystemExit(f"error: --source {source}: no picture is of it; there are {sorted(set(dataset.sources))}")
    return dataset.subset(chosen)


def validation_pictures(checkpoint: Path, data: Sequence[Path] = ()) -> CellDataset:
    """The validation pictures of the run that wrote ``checkpoint``; ``data`` as in :func:`datasets_of_run`."""
    return datasets_of_run(checkpoint, data).val
