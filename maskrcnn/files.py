"""Output files and folders: written as a whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError, writing

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; at the end of the block it takes the name ``path``.

    Where the block fails, it is removed, and what stood at ``path`` stays. The folder is made where it is missing.

    Raises:
        InputError: the folder or the file cannot be written.
    """
    beside = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def new_folder(path: Path) -> Path:
    """Create a folder that no other process has: ``path``, or where that is there already ``path-2``, ``path-3``, ...

    For default names that hold the time: jobs that start in the same second get a folder each.

    Returns:
        The folder that was created; its parents are made where they are missing.

    Raises:
        InputError: it cannot be created.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    raise AssertionError("unreachable")


@contextmanager
def lock_folder(folder: Path, work: str) -> Iterator[None]:
    """Inside the block, no other process can lock ``folder`` for the same ``work``.

    The lock is that of ``flock(2)`` on the file ``.<work>.lock`` in the folder, which is left there. The kernel
    releases it when the process ends, however it ends; child processes do not inherit it. It holds between the machines
    of a shared file system where that has locks; where it has none, a warning says so and the block runs without.

    Of several processes that torchrun started the main one takes it, for all of them::

        with ExitStack() as held:
            distributed.from_main(lambda: held.enter_context(lock_folder(folder, "train")))
            ...

    Args:
        folder: must exist.
        work: what is done in it, one word: training into a folder does not exclude predicting into it.

    Raises:
        InputError: another process (or another call in this one) holds the lock, or the file cannot be written.
    """
    path = folder / f".{work}.lock"
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(descriptor)
    try:
        _lock(descriptor, folder, work)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, work: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise InputError(
            f"{folder}: in use by {holder}; wait until that ends, or choose another folder with --out"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL):
            raise InputError(f"{folder}: cannot be locked: {error.strerror}") from error
        print(
            f"warning: {folder}: its file system has no locks ({error.strerror}): make sure that no other process "
            "writes into it",
            file=sys.stderr,
        )
        return
    with writing(folder / f".{work}.lock"):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} ({work})\n".encode(), 0)


def _close_inherited() -> None:
    """A forked process (a loader's worker) must not keep a lock alive that its parent held."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_inherited)


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as strict JSON: numbers that are infinite or NaN, for which JSON has no notation, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
