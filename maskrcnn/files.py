"""Files that are whole or not there: half-written output never replaces good output."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError, writing


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


def read_json(path: Path) -> Any:
    """The contents of a JSON file in UTF-8, -16 or -32, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
