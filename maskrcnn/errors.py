"""The one exception for what a user can put right, and how the scripts show it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A file, folder or option of the user's is not what it must be.

    The message is one line: it names the file or option, says what was found and what is expected. ``train.py`` and
    ``infer.py`` print it without a traceback and exit with status 2.
    """


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an :class:`InputError` inside the block into one line on stderr and exit status 2."""
    try:
        yield
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block (no space, no permission) into an :class:`InputError` that names ``path``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
