"""Which pictures an inference run predicts: files and pages, what their results are called, and how they are opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from maskrcnn.data.hw3 import IMAGE
from maskrcnn.data.id_mapping import read_test_release
from maskrcnn.data.picture import Picture, open_pictures
from maskrcnn.data.tiff import is_tiff, readable
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig

PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Job:
    """One picture to predict: page ``page`` of the file ``path``. ``key`` names its output files."""

    key: str
    file_name: str
    path: Path
    page: int
    image_id: int
    size: tuple[int, int] | None = None


def find_jobs(config: InferConfig) -> list[Job]:
    """The pictures of ``--data`` or ``--images`` in order; raises InputError where there are none."""
    if config.data is not None:
        tests = read_test_release(config.data)
        keys = _keys([test.path for test in tests], [1] * len(tests))
        return [
            Job(key, test.file_name, test.path, 0, test.image_id, (test.height, test.width))
            for (key,), test in zip(keys, tests, strict=True)
        ]
    listed = [path for entry in config.images for path in _pictures_in(entry)]
    paths = list({os.path.abspath(path): path for path in listed}.values())  # a folder may be given twice
    own_pages = [_pages(path, config, {os.path.realpath(other) for other in paths}) for path in paths]
    keys = _keys(paths, list(map(len, own_pages)))
    pages = [
        (key, path, page)
        for names, path, numbers in zip(keys, paths, own_pages, strict=True)
        for key, page in zip(names, numbers, strict=True)
    ]
    return [Job(key, path.name, path, page, image_id) for image_id, (key, path, page) in enumerate(pages, start=1)]


def _pages(path: Path, config: InferConfig, listed: set[str]) -> list[int]:
    """The numbers of a file's pictures, from its header; of those of an OME set, without what other ``listed`` files
    hold. One of a file that cannot be read, which will fail in its turn."""
    try:
        with readable(path):
            if not is_tiff(path):
                return [0]
        pictures = open_pictures(path, level=config.level, channels=config.channels)
    except InputError:
        return [0]
    return [
        number
        for number, picture in enumerate(pictures)
        if picture.path == path or os.path.realpath(picture.path) not in listed
    ]


def _pictures_in(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    if not entry.is_dir():
        raise InputError(f"--images {entry}: no such file or folder")
    found = sorted(path for path in entry.iterdir() if path.suffix.lower() in PICTURES) or sorted(
        entry.glob(f"*/{IMAGE}")
    )
    if not found:
        raise InputError(f"--images {entry}: no picture ({', '.join(PICTURES)}) in this folder")
    return found


def _keys(paths: Sequence[Path], pages: Sequence[int]) -> list[list[str]]:
    """Of each file the names that its pages' results get: its own without the ending, of ``<name>/image.tif`` the
    folder's; in a stack the page's number follows.

    Where that names two files, the ending stays; where it still does, a number follows.
    """
    stems = [path.parent.name if path.name == IMAGE else path.stem for path in paths]
    counts = Counter(stems)
    taken: set[str] = set()
    keys = []
    for stem, path, number in zip(stems, paths, pages, strict=True):
        name = stem if counts[stem] == 1 else path.name
        ends = [f"-{page + 1}" if number > 1 else "" for page in range(number)]
        names = (name if copy == 1 else f"{name}-{copy}" for copy in count(1))
        free = next(name for name in names if not any(name + end in taken for end in ends))
        keys.append([free + end for end in ends])
        taken.update(keys[-1])
    return keys


def source_of(job: Job) -> list[str | int] | None:
    """What tells the picture from another one, or another version, of the same name; None where it is gone."""
    try:
        status = job.path.stat()
    except OSError:
        return None
    return [os.path.abspath(job.path), job.page, status.st_size, status.st_mtime_ns]


class Opener:
    """Opens the pictures of jobs; the pages of a stack in a row, from one reading of its headers."""

    def __init__(self, config: InferConfig, percentiles: tuple[float, float] | None) -> None:
        self.config, self.percentiles = config, percentiles
        self.path: Path | None = None
        self.pages: list[Picture] = []

    def __call__(self, job: Job) -> Picture:
        """Raises InputError where the file cannot be read, or is not of the size that the id mapping says."""
        if job.path != self.path:
            self.path = None  # stays so where the file cannot be opened
            self.pages = open_pictures(job.path, self.percentiles, self.config.level, self.config.channels)
            self.path = job.path
        if job.page >= len(self.pages):
            raise InputError(f"{job.path}: {len(self.pages)} pages now; it had more when the run started")
        picture = self.pages[job.page]
        if job.size is not None and picture.size != job.size:
            (height, width), (h, w) = picture.size, job.size
            raise InputError(f"{job.path}: {height}x{width} pixels, but the id mapping says {h}x{w}")
        return picture
