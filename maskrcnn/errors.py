"""The one exception for what a user can put right, and how the scripts show it."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


class InputError(ValueError):
    """A file, folder or option of the user's is not what it must be.

    The message is one line: it names the file or option, says what was found and what is expected. ``train.py`` and
    ``infer.py`` print it without a traceback and exit with status 2.
    """


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can put right, or has asked for, inside the block into one line on stderr and an exit status.

    An :class:`InputError`, and an OSError that names a file (it cannot be read, say): status 2. Ctrl-C: 130, and a
    reader of standard output that has gone away (``| head``): 141, nothing said, as of other programs. All else is a
    fault of the program, and keeps its traceback.
    """
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        _end(str(error))
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"{os.fsdecode(error.filename)}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _end(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads; if so, what is still to be written goes nowhere."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # it is no file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # errors alone
    gone = bool(poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return gone


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block (no space, no permission) into an :class:`InputError` that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or f"{error} (is the disk full?)"  # numpy counts the bytes, and gives no reason
        raise InputError(f"{path}: cannot be written: {reason}") from error
