"""Files that are whole or not there: half-written output never replaces good output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskrcnn.errors import writing


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
