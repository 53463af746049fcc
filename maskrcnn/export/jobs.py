"""Lists the pictures of an inference run: files and pages, the names of their results, and how they are opened."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tifffile

from maskrcnn import distributed
from maskrcnn.data import lif, slide
from maskrcnn.data.hw3 import IMAGE
from maskrcnn.data.id_mapping import read_test_release
from maskrcnn.data.ngff import is_zarr, metadata_of
from maskrcnn.data.picture import Picture, open_pictures
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.names import result_keys
from maskrcnn.files import encodable, printable

PICTURES = frozenset(
    [f".{name.rpartition('.')[2]}" for name in tifffile.TIFF.FILE_EXTENSIONS]
    + [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".jp2", ".ppm", ".pgm"]
    + [".czi", ".nd2", *lif.SUFFIXES, *slide.SUFFIXES]
)
"""Extensions of the pictures in a folder: all that tifffile lists for TIFFs (``.svs``, ``.ndpi``, ``.lsm``, ``.btf``,
...), formats of Pillow, and those of microscopes. A file that is given itself may have any extension."""


@dataclass(frozen=True)
class Job:
    """One picture to predict: number ``page`` of those in ``path``. ``key`` names its output files."""

    key: str
    file_name: str
    path: Path
    page: int
    image_id: int
    size: tuple[int, int] | None = None


def find_jobs(config: InferConfig) -> list[Job]:
    """The pictures of ``--data`` or ``--images`` in order; raises InputError if there are none."""
    if config.data is not None:
        tests = read_test_release(config.data)
        keys = result_keys([test.path for test in tests], [[""]] * len(tests))
        return [
            Job(key, test.file_name, test.path, 0, test.image_id, (test.height, test.width))
            for (key,), test in zip(keys, tests, strict=True)
        ]
    listed = [path for entry in config.images for path in pictures_in(entry)]
    paths = list({os.path.abspath(path): path for path in listed}.values())  # a folder may be given twice
    file_pages = [_pages(path, config, {os.path.realpath(other) for other in paths}) for path in paths]
    keys = result_keys(paths, [list(pages.values()) for pages in file_pages])
    pages = [
        (key, path, page)
        for names, path, numbers in zip(keys, paths, file_pages, strict=True)
        for key, page in zip(names, numbers, strict=True)
    ]
    return [Job(key, path.name, path, page, image_id) for image_id, (key, path, page) in enumerate(pages, start=1)]


def _pages(path: Path, config: InferConfig, listed: set[str]) -> dict[int, str]:
    """The numbers of a file's pictures and their places, from its header; for a multi-file OME-TIFF, without the
    pictures in other ``listed`` files. Number 0 for a file that cannot be read, which fails later."""
    try:
        pictures = open_pictures(path, level=config.level, channels=config.channels)
    except Exception:  # decoders raise all kinds of exceptions
        return {0: ""}
    return {
        number: picture.place
        for number, picture in enumerate(pictures)
        if picture.path == path or os.path.realpath(picture.path) not in listed
    }


def pictures_in(entry: Path, option: str = "--images") -> list[Path]:
    """The file or OME-Zarr ``entry``, or the pictures in a folder: files with a known extension and OME-Zarrs, else
    <name>/image.tif.

    Hidden files are ignored; other entries that are ignored are counted in one line on stderr.
    """
    if os.path.isfile(entry) or is_zarr(entry):
        return [entry]
    if not os.path.isdir(entry):
        raise InputError(f"{option} {entry}: no such file or folder")
    try:
        paths = sorted(path for path in entry.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{option} {entry}: cannot be listed: {error.strerror}") from error
    # a broken link counts as a picture, which fails later; a pipe does not
    files = {path for path in paths if os.path.isfile(path) or not os.path.exists(path)}
    found = [path for path in paths if (path in files and path.suffix.lower() in PICTURES) or is_zarr(path)]
    found = found or [path / IMAGE for path in paths if os.path.isfile(path / IMAGE)]
    if not found:
        kinds = "TIFF, PNG, JPEG, BMP, WebP, JPEG 2000, or of a microscope"
        raise InputError(f"{option} {entry}: no picture ({kinds}, by its ending) in this folder")
    taken = set(found)
    _print_ignored(entry, [path for path in paths if not {path, path / IMAGE} & taken])
    return found


def _print_ignored(folder: Path, paths: Sequence[Path]) -> None:
    kinds = Counter("folder" if os.path.isdir(path) else path.suffix or "without an ending" for path in paths)
    if kinds and distributed.is_main():
        counts = ", ".join(f"{number} {printable(kind)}" for kind, number in kinds.most_common())
        print(f"note: {printable(str(folder))}: left out what is no picture by its ending: {counts}", file=sys.stderr)


def source_of(job: Job) -> list[str | int] | None:
    """Identifies a picture and its version: path, page, size and modification time; None if the file is missing.

    Of an OME-Zarr, the size and time are those of its metadata: a folder changes when labels are written into it.
    """
    try:
        status = metadata_of(job.path).stat()
    except OSError:
        return None
    return [encodable(os.path.abspath(job.path)), job.page, status.st_size, status.st_mtime_ns]


class Opener:
    """Opens the pictures of jobs; consecutive pages of a stack share one reading of its headers, as long as the file is
    the same. What an earlier page keeps in memory is released."""

    def __init__(self, config: InferConfig, percentiles: tuple[float, float] | None) -> None:
        self.config, self.percentiles = config, percentiles
        self.file: tuple[Path, list[str | int] | None] | None = None
        self.pages: list[Picture] = []
        self.current: Picture | None = None

    def __call__(self, job: Job) -> Picture:
        """Open a picture; raises InputError if the file cannot be read, or its size is not that of the id mapping."""
        file = job.path, source_of(replace(job, page=0))
        if file != self.file:
            self.file = None  # if it cannot be opened
            config = self.config
            self.pages = open_pictures(job.path, self.percentiles, config.level, config.channels, config.pixel_size)
            self.file = file
        if job.page >= len(self.pages):
            raise InputError(f"{job.path}: {len(self.pages)} pages now; it had more when the run started")
        picture = self.pages[job.page]
        if self.current is not None and self.current is not picture:
            self.current.release()
        self.current = picture
        if job.size is not None and picture.size != job.size:
            (height, width), (h, w) = picture.size, job.size
            raise InputError(f"{job.path}: {height}x{width} pixels, but the id mapping says {h}x{w}")
        return picture
