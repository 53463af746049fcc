"""The exception for errors that a user can correct, and how the command line shows it."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


class InputError(ValueError):
    """Raised for a file, folder, option or argument that is invalid.

    The message is one line: it names the file or option, what was found and what is expected. The command line prints
    it without a traceback and exits with status 2.
    """


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of the user's input inside the block into one line on stderr and an exit status.

    :class:`InputError`, or an OSError that names a file (that cannot be read, for example): status 2. Ctrl-C: 130. If
    the reader of standard output has exited (``| head``): 141, without a message. Other exceptions are bugs and keep
    their traceback.
    """
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        _end(str(error))
    except BrokenPipeError:
        if not _reader_has_exited():
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


def _reader_has_exited() -> bool:
    """Whether standard output is a pipe without a reader; if so, redirect it to the null device."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # not a file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)  # report errors only
    exited = bool(poll.poll(0))
    if exited:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return exited


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block (no space, no permission) into an :class:`InputError` that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or f"{error} (is the disk full?)"  # numpy's error counts the bytes, without a reason
        raise InputError(f"{path}: cannot be written: {reason}") from error
