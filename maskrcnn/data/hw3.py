"""The HW3 layout: ``train/<name>/image.tif`` with ``class1.tif`` ..., and ``test_release/`` with its id mapping."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskrcnn.data.dataset import CellDataset, Transform
from maskrcnn.data.picture import DEFAULT_PERCENTILES, read_image
from maskrcnn.data.reader import image_size, read_mask
from maskrcnn.errors import InputError
from maskrcnn.structures import InstanceLabels

IMAGE = "image.tif"
MAPPING = "test_image_name_to_ids.json"
_CLASS_FILE = re.compile(r"class([1-9][0-9]*)\.tiff?")


class Hw3Folder(CellDataset):
    """Pictures in folders of their own, with one label file a class. Their source is the name of the folder ``root``,
    or of the folder above where that is ``train``.

    Args:
        root: the folder that holds ``train/``, or ``train/`` itself.
        percentiles: intensity range that is stretched to 0..255, see :class:`maskrcnn.data.picture.Picture`.
        transform: for ``dataset[i, seed]``.
        names: pictures to use; default: all, sorted. ``image_id`` is the place among all of them, from 1.
        num_classes: default: the highest class that has a file.
        channels: those of the pictures that are shown, see :func:`maskrcnn.data.picture.open_pictures`.

    Raises:
        InputError: for a missing or empty folder, a folder without ``image.tif``, or a class file of no known class;
            when a picture is read, for files that do not fit together.
    """

    def __init__(
        self,
        root: str | Path,
        percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
        transform: Transform | None = None,
        names: Sequence[str] | None = None,
        num_classes: int | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        root = Path(root)
        self.folder = root / "train" if (root / "train").is_dir() else root
        self.percentiles, self.channels, self.transform = percentiles, channels, transform
        found = _picture_folders(self.folder)
        self._class_files = {name: _class_files(self.folder / name, num_classes) for name in found}
        highest = max((k for files in self._class_files.values() for k in files), default=0)
        self.num_classes = num_classes if num_classes is not None else highest
        if self.num_classes == 0:
            raise InputError(f"{self.folder}: no class1.tif, class2.tif, ... in any of its {len(found)} folders")
        unknown = sorted(set(names or ()) - set(found))
        if unknown:
            raise InputError(f"{self.folder}: no folder {unknown[0]}")
        ids = {name: index for index, name in enumerate(found, start=1)}
        self.names = list(names) if names is not None else found
        self.image_ids = [ids[name] for name in self.names]
        self.sources = [_collection(self.folder)] * len(self.names)

    def file_name(self, index: int) -> str:
        return f"{self.names[index]}/{IMAGE}"

    def read_image(self, index: int) -> Tensor:
        path = self.folder / self.names[index] / IMAGE
        image = read_image(path, self.percentiles, self.channels)
        size = self.labels(index).size
        if image.shape[:2] != size:
            raise InputError(f"{path}: {image.shape[0]}x{image.shape[1]} pixels, expected {size[0]}x{size[1]}")
        return image

    def read_labels(self, index: int) -> InstanceLabels:
        folder = self.folder / self.names[index]
        height, width = image_size(folder / IMAGE)
        files = self._class_files[self.names[index]]
        planes = []
        for path in files.values():
            plane = read_mask(path)
            if plane.shape != (height, width):
                size = f"{plane.shape[0]}x{plane.shape[1]}"
                raise InputError(f"{path}: mask of {size} pixels, expected {height}x{width} as its {IMAGE}")
            planes.append(plane)
        if not planes:
            return InstanceLabels.empty(height, width)
        return InstanceLabels.from_planes(torch.stack(planes), list(files))


@dataclass(frozen=True)
class TestImage:
    """A picture to predict: its file, the name and id that results use, and its size in pixels."""

    __test__ = False  # not a test case, whatever pytest takes its name for

    path: Path
    file_name: str
    image_id: int
    height: int
    width: int


def read_test_release(root: str | Path) -> list[TestImage]:
    """The pictures of ``root/test_release`` in the order of ``root/test_image_name_to_ids.json``.

    Raises:
        InputError: for a missing folder or mapping, an entry without name, id or size, a file that is missing or named
            twice, or an id given twice. The files themselves are not opened here.
    """
    root = Path(root)
    mapping = root / MAPPING
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    try:
        entries = json.loads(mapping.read_text())
    except OSError as error:
        raise InputError(f"{mapping}: the id mapping cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{mapping}: not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{mapping}: expected a list of pictures")
    images: list[TestImage] = []
    names: set[str] = set()
    ids: set[int] = set()
    for entry in entries:
        image = _test_image(entry, root / "test_release", mapping)
        if image.image_id in ids:
            raise InputError(f"{mapping}: the id {image.image_id} is given twice, also to {image.file_name}")
        if image.file_name in names:
            raise InputError(f"{mapping}: {image.file_name} is named twice")
        ids.add(image.image_id)
        names.add(image.file_name)
        images.append(image)
    return images


def _test_image(entry: object, folder: Path, mapping: Path) -> TestImage:
    keys = ("file_name", "id", "height", "width")
    if not isinstance(entry, dict) or any(key not in entry for key in keys):
        raise InputError(f"{mapping}: the entry {json.dumps(entry)[:80]} lacks one of {', '.join(keys)}")
    name, numbers = entry["file_name"], [entry[key] for key in keys[1:]]
    if not isinstance(name, str) or any(type(number) is not int for number in numbers):
        raise InputError(f"{mapping}: the entry {json.dumps(entry)[:80]} needs a text and three whole numbers")
    path = folder / name
    if not path.is_file():
        raise InputError(f"{mapping}: names {name}, which is not in {folder}")
    return TestImage(path, name, *numbers)


def _collection(folder: Path) -> str:
    """``dsb2018`` for ``.../dsb2018`` and for ``.../dsb2018/train``."""
    folder = Path(os.path.abspath(folder))  # "." has a name too, and a link keeps its own
    return folder.parent.name if folder.name == "train" and folder.parent.name else folder.name


def _picture_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder}: holds no folder with an {IMAGE}")
    for name in names:
        if not (folder / name / IMAGE).is_file():
            raise InputError(f"{folder / name}: no {IMAGE} in this folder")
    return names


def _class_files(folder: Path, num_classes: int | None) -> dict[int, Path]:
    """Class -> its file, ascending."""
    files: dict[int, Path] = {}
    for path in folder.glob("*.tif*"):
        if path.name == IMAGE:
            continue
        match = _CLASS_FILE.fullmatch(path.name)
        if match is None:
            raise InputError(f"{path}: not a file of a class; expected {IMAGE}, class1.tif, class2.tif, ...")
        number = int(match[1])
        if num_classes is not None and number > num_classes:
            raise InputError(f"{path}: class {number}, but there are {num_classes} classes")
        if number in files:
            raise InputError(f"{path}: class {number} has another file, {files[number].name}")
        files[number] = path
    return dict(sorted(files.items()))
