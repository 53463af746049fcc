"""Names of result files, made from the names of pictures, which may contain anything that a file system allows."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from maskrcnn.data.hw3 import IMAGE

LONGEST = 200
"""Maximum length of a result's name in bytes: 255 in file systems, minus extensions such as ``.geojson.part``."""


def file_stem(key: str) -> str:
    """The name of a picture's files without extension: its key, truncated and with a hash if it is long."""
    name = os.fsencode(key)
    if len(name) <= LONGEST:
        return key
    digest = hashlib.sha256(name).hexdigest()[:12]
    start = name[: LONGEST - len(digest) - 1].decode("utf-8", "ignore")
    return f"{start}~{digest}"


def result_keys(paths: Sequence[Path], places: Sequence[Sequence[str]]) -> list[list[str]]:
    """Unique keys for the results of each file's pictures.

    A file's key is its name without extension, or the folder's name for ``<name>/image.tif``; of several pictures, the
    place is appended: ``plate_B03_f2_t0``, or ``stack-2`` where it is only a number. If two files have the same key,
    the extension is kept; if that is not unique either, a number is appended. Keys that differ only in case count as
    equal, as on the file systems of macOS and Windows.

    Args:
        paths: the files.
        places: the places (:class:`maskrcnn.data.stored.StoredPicture`) of the pictures of each file.
    """
    stems = [_stem(path) for path in paths]
    counts = Counter(map(_folded, stems))
    taken: set[str] = set()
    keys = []
    for stem, path, file_places in zip(stems, paths, places, strict=True):
        name = stem if counts[_folded(stem)] == 1 else path.name
        ends = [_end(place) if len(file_places) > 1 else "" for place in file_places]
        free = next(name for name in _numbered(name) if not any(_folded(name + end) in taken for end in ends))
        keys.append([free + end for end in ends])
        taken.update(map(_folded, keys[-1]))
    return keys


def _end(place: str) -> str:
    return f"-{place}" if place.isdigit() else f"_{place}"


def _stem(path: Path) -> str:
    path = Path(os.path.abspath(path))  # for the folder's name of "image.tif" and "../image.tif"
    name = path.parent.name if path.name == IMAGE else path.stem
    return path.name if name in ("", ".", "..") else name  # "...tif" has the stem ".."


def _numbered(name: str) -> Iterator[str]:
    return (name if copy == 1 else f"{name}-{copy}" for copy in count(1))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
