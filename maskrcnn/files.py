"""Output files and folders: written as a whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError, writing

_LONGEST_NAME = 255
"""Maximum length of a file name in bytes, on common file systems."""

_ESCAPED_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")

_lock_descriptors: set[int] = set()
"""File descriptors of the locks that this process holds; forked processes close them."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file as a whole or not at all: yields a temporary path, which is renamed to ``path`` after the block.

    If the block fails, the temporary file is removed and an existing ``path`` stays unchanged; after a power failure,
    either the old or the new file is complete. Missing folders are created. The new file keeps the permissions of the
    one that it replaces.

    Raises:
        InputError: the folder or the file cannot be written, or the block raised an OSError.
    """
    beside = path.with_name(f"{path.name}.part")
    if len(os.fsencode(beside.name)) > _LONGEST_NAME:
        beside = path.with_name(f"{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            if path.exists():
                shutil.copymode(path, beside)
            _fsync(beside)
            os.replace(beside, path)
            _fsync(path.parent)  # the name of a file is an entry of its folder
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 through :func:`atomic_write`."""
    with atomic_write(path) as beside:
        beside.write_bytes(text.encode())


def _fsync(path: Path) -> None:
    """Wait until a file or folder is written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_folder(path: Path) -> Path:
    """Create a new folder: ``path``, or if that exists ``path-2``, ``path-3``, ...

    For default names that contain the time: jobs that start in the same second get different folders.

    Returns:
        The folder that was created; missing parents are created too.

    Raises:
        InputError: the folder cannot be created.
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

    The lock is ``flock(2)`` on the file ``.<work>.lock`` in the folder, which is left there. The kernel releases it
    when the process ends for any reason; child processes do not inherit it. On a shared file system it also holds
    between machines; on a file system without locks, a warning is printed and the block runs without one.

    With torchrun, the main process takes the lock for all processes::

        with ExitStack() as stack:
            distributed.from_main(lambda: stack.enter_context(lock_folder(folder, "train")))
            ...

    Args:
        folder: must exist.
        work: one word for the kind of work: training into a folder does not exclude predicting into it.

    Raises:
        InputError: another process (or another call in this one) holds the lock, or the lock file cannot be written.
    """
    path = folder / f".{work}.lock"
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _release_in_forked_processes()
    _lock_descriptors.add(descriptor)
    try:
        _lock(descriptor, folder, work)
        yield
    finally:
        _lock_descriptors.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, work: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise InputError(
            f"{folder}: in use by {holder}; wait until it ends, or choose another folder with --out"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL):
            raise InputError(f"{folder}: cannot be locked: {error.strerror}") from error
        print(
            f"warning: {folder}: the file system has no locks ({error.strerror}): make sure that no other process "
            "writes into this folder",
            file=sys.stderr,
        )
        return
    with writing(folder / f".{work}.lock"):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} ({work})\n".encode(), 0)


@functools.cache
def _release_in_forked_processes() -> None:
    """Register a hook, once, so that forked processes (loader workers) do not keep their parent's locks."""

    def release() -> None:
        for descriptor in _lock_descriptors:
            os.close(descriptor)
        _lock_descriptors.clear()

    os.register_at_fork(after_in_child=release)


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as strict JSON: infinite and NaN numbers, which JSON cannot represent, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def encodable(name: str) -> str:
    """The name of a file with escapes (``\\udcff``) for bytes that are not UTF-8, which JSON cannot hold."""
    return name.encode(errors="backslashreplace").decode()


def file_of_name(name: str) -> Path:
    """The file whose name :func:`encodable` returned."""
    path = Path(name)
    return path if os.path.exists(path) else Path(_ESCAPED_BYTE.sub(lambda match: chr(int(match[1], 16)), name))


def printable(text: str) -> str:
    """``text`` on one line, with escapes (``\\n``, ``\\udcff``) for characters that cannot be shown or encoded: line
    ends, control characters, and bytes of file names that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
