"""Data-parallel training in several processes started by torchrun; without torchrun, everything is one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn.errors import InputError

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets (https://docs.pytorch.org/docs/stable/elastic/run.html)."""

TIMEOUT = timedelta(hours=1)
"""How long processes wait for each other: only process 0 computes validation scores, which may take minutes."""


def rank() -> int:
    """Rank of this process, 0..N - 1; 0 without torchrun."""
    return dist.get_rank() if _running() else 0


def launched_rank() -> int:
    """:func:`rank`, also before the process group is initialized and after it is destroyed."""
    return int(os.environ["RANK"]) if all(name in os.environ for name in VARIABLES) else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _running() else 1


def is_main() -> bool:
    """Whether this is process 0, the only one that writes files, prints and shows progress."""
    return rank() == 0


@contextmanager
def processes(device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Initialize the process group for the block if torchrun started this process: gloo for tensors and objects on the
    CPU, nccl for tensors on GPUs, of which each process has one.

    Collective operations wait up to ``timeout``. Raises InputError if torchrun started more processes on this machine
    than it has GPUs.
    """
    if any(name not in os.environ for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise InputError(
                f"torchrun --nproc-per-node: process {local + 1} of this machine has no GPU; it has "
                f"{torch.cuda.device_count()}, start as many processes or choose --device cpu"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` in DistributedDataParallel, which averages gradients over the processes; one process: ``model``."""
    if not _running():
        return model
    return DistributedDataParallel(model, device_ids=[torch.cuda.current_device()] if device.type == "cuda" else None)


def mean(values: Tensor) -> Tensor:
    """The mean of a float tensor over the processes, in all of them."""
    if not _running():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_count(count: Tensor | int, device: torch.device) -> Tensor | int:
    """The denominator of a loss that is a mean over examples: their mean number over the training processes.

    DistributedDataParallel averages gradients. With sum_r and n_r of process r of N, the average of sum_r / mean(n) is
    sum(sum_r) / sum(n), as if one process had all images; the average of sum_r / n_r is not. All processes must call
    this, in the same order.

    Args:
        count: examples in this process, possibly 0; a number, or an integer scalar on ``device``.
        device: the device of the loss.

    Returns:
        At least 1, as ``count`` is given, in one process; else a float32 scalar on ``device``, at least 1 / N.
    """
    if not _running():
        return count.clamp(min=1) if isinstance(count, Tensor) else max(1, count)
    # filled on the device: torch.tensor would copy, for which the host waits
    total = count.clone() if isinstance(count, Tensor) else torch.full((), count, device=device)
    dist.all_reduce(total)
    return total.clamp(min=1) / world_size()


def any_process(flag: bool) -> bool:
    """Whether ``flag`` is set in any process; the same result in all of them."""
    if not _running():
        return flag
    flags = torch.tensor(int(flag))  # on the CPU: no process waits for its GPU
    dist.all_reduce(flags)
    return bool(flags.item())


def from_all(value: T) -> list[T]:
    """``value`` (anything that can be pickled) of every process, in order of rank, in all processes."""
    values: list[Any] = [value] * world_size()
    if _running():
        dist.all_gather_object(values, value)
    return values


def gather(value: T) -> list[T]:
    """``value`` (anything that can be pickled) of every process, in order of rank, in process 0; [] in the others."""
    if not _running():
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return cast(list[T], values or [])


def in_all(make: Callable[[], T]) -> T:
    """Call ``make`` in every process and return its result.

    If it fails in any process, all of them raise InputError with the message of the first that failed, so that none
    waits for that one forever.
    """
    result, message = None, ""
    try:
        result = make()
    except Exception as error:
        if not _running():
            raise
        message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    if first := next(filter(None, from_all(message)), ""):
        raise InputError(first)
    return cast(T, result)


def from_main(make: Callable[[], T]) -> T:
    """Call ``make`` in process 0 only and return its result in all processes, which wait for it.

    An InputError of ``make`` is raised in all processes, so that none waits for process 0 forever.
    """
    if not _running():
        return make()
    message: list[Any] = [None, None]
    if is_main():
        try:
            message[0] = make()
        except InputError as error:
            message[1] = str(error)
    dist.broadcast_object_list(message)
    if message[1] is not None:
        raise InputError(message[1])
    return cast(T, message[0])


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
