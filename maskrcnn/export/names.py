"""Names of result files, made from the names of pictures, which may be anything that a file system allows."""

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
"""Bytes of a result's name at most. File systems take 255, of which endings such as ``.geojson.part`` need some."""


def printable(text: str) -> str:
    """``text`` on one line: characters that cannot be shown or encoded, such as line ends, control characters and bytes
    of a file name that are not UTF-8, as escapes (``\\n``, ``\\udcff``)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def file_stem(key: str) -> str:
    """A picture's key as its files are called: a long one is cut and ends with a hash of the whole."""
    name = os.fsencode(key)
    if len(name) <= LONGEST:
        return key
    digest = hashlib.sha256(name).hexdigest()[:12]
    start = name[: LONGEST - len(digest) - 1].decode("utf-8", "ignore")
    return f"{start}~{digest}"


def result_keys(paths: Sequence[Path], pages: Sequence[int]) -> list[list[str]]:
    """The keys that the results of each file's pages get, each of them once.

    A file's key is its name without the ending, or of ``<name>/image.tif`` the folder's; in a stack the page's number
    follows. Where that names two files, the ending stays; where it still does, a number follows. Keys that differ in
    case alone count as one, as they do on the file systems of macOS and Windows.

    Args:
        paths: the files.
        pages: how many pages of each file are predicted.
    """
    stems = [_stem(path) for path in paths]
    counts = Counter(map(_folded, stems))
    taken: set[str] = set()
    keys = []
    for stem, path, number in zip(stems, paths, pages, strict=True):
        name = stem if counts[_folded(stem)] == 1 else path.name
        ends = [f"-{page + 1}" if number > 1 else "" for page in range(number)]
        free = next(name for name in _numbered(name) if not any(_folded(name + end) in taken for end in ends))
        keys.append([free + end for end in ends])
        taken.update(map(_folded, keys[-1]))
    return keys


def _stem(path: Path) -> str:
    path = Path(os.path.abspath(path))  # "image.tif" and "../image.tif" lie in a folder that has a name
    name = path.parent.name if path.name == IMAGE else path.stem
    return path.name if name in ("", ".", "..") else name  # of "...tif" the stem is the folder above


def _numbered(name: str) -> Iterator[str]:
    return (name if copy == 1 else f"{name}-{copy}" for copy in count(1))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
