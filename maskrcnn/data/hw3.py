"""Training sets in the HW3 layout: ``train/<name>/image.tif`` with ``class1.tif``, ``class2.tif``, ... beside it."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from maskrcnn import distributed
from maskrcnn.data.dataset import CellDataset, Transform
from maskrcnn.data.picture import DEFAULT_PERCENTILES, read_image
from maskrcnn.data.reader import image_size, only_picture, read_mask
from maskrcnn.data.stored import StoredPicture
from maskrcnn.errors import InputError
from maskrcnn.structures import InstanceLabels

IMAGE = "image.tif"
_CLASS_FILE = re.compile(r"class([1-9][0-9]{0,2})\.(?:tiff?|png)")
_LOOKS_LIKE_CLASS_FILE = re.compile(r"class(?![a-z])")
_TIFF = (".tif", ".tiff")
_OTHER = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".npy", ".npz", ".mat", ".h5")
"""Extensions of files that users may expect to be read as labels."""

_MASK_VALUES = (1, 255, 65535)
"""Values that usually mark cells in a semantic mask, besides the class's own number."""

_MASK_WARNING_LOCK = (
    "warning: {}: holds one value, {}, in {} pieces, and is read as one cell; if each piece is a cell, give each its "
    "own number, for example with skimage.measure.label (there may be more such files)"
)
_WARNING_LOCK = threading.Lock()


class Hw3Folder(CellDataset):
    """Data set of one folder per picture, with one label file per class, a TIFF or PNG.

    The pictures' source is the name of the folder ``root``, or of its parent if that is called ``train``. A label file
    that seems to hold one mask of all cells, instead of a number per cell, is read as one cell; a warning on stderr
    names the first such file.

    Args:
        root: the folder that holds ``train/``, or ``train/`` itself.
        percentiles: intensity range that is stretched to 0..255, see :class:`maskrcnn.data.picture.Picture`.
        transform: for ``dataset[i, seed]``.
        names: pictures to use; default: all, sorted. ``image_ids`` count all pictures of the folder from 1.
        num_classes: default: the highest class that has a file.
        channels: channels of the pictures to use, see :func:`maskrcnn.data.picture.open_pictures`.

    Raises:
        InputError: a folder is missing, empty or without ``image.tif``, or a class file has an unknown class; when a
            picture is read: its files have different sizes.
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
        self._warned: list[Path] = []  # shared with the subsets

    def file_name(self, index: int) -> str:
        return f"{self.names[index]}/{IMAGE}"

    def read_image(self, index: int) -> Tensor:
        path = self.folder / self.names[index] / IMAGE
        image = read_image(path, self.percentiles, self.channels)
        size = self.labels(index).size
        if image.shape[:2] != size:
            raise InputError(f"{path}: {image.shape[0]}x{image.shape[1]} pixels, expected {size[0]}x{size[1]}")
        return image

    def open_image(self, index: int) -> StoredPicture:
        """See :meth:`CellDataset.open_image`; the size is compared to that of the labels when these are read."""
        return only_picture(self.folder / self.names[index] / IMAGE, self.channels)

    def read_labels(self, index: int) -> InstanceLabels:
        folder = self.folder / self.names[index]
        height, width = image_size(folder / IMAGE)
        files = self._class_files[self.names[index]]
        planes = []
        for path in files.values():
            plane = read_mask(path)
            if plane.shape != (height, width):
                size = f"{plane.shape[0]}x{plane.shape[1]}"
                raise InputError(f"{path}: mask of {size} pixels, expected {height}x{width} as in {IMAGE}")
            planes.append(plane)
        if not planes:
            return InstanceLabels.empty(height, width)
        labels = InstanceLabels.from_planes(torch.stack(planes), list(files))
        self._warn_about_mask(labels, files)
        return labels

    def _warn_about_mask(self, labels: InstanceLabels, files: dict[int, Path]) -> None:
        """Warn once about a file that holds one value in several pieces; in three or more if it is an unusual value.

        It is not an error: it may be one cell that has the number 255 in a larger picture.
        """
        for plane, (number, path) in enumerate(files.items()):
            values = labels.ids[labels.plane == plane].tolist()
            if self._warned or len(values) != 1:
                continue
            most = 1 if values[0] in (*_MASK_VALUES, number) else 2
            _, pieces = ndimage.label(labels.planes[plane].numpy(), structure=np.ones((3, 3)))
            with _WARNING_LOCK:
                if pieces > most and not self._warned:
                    self._warned.append(path)
                    if distributed.is_main():
                        print(_MASK_WARNING_LOCK.format(path, values[0], pieces), file=sys.stderr)


def _collection(folder: Path) -> str:
    """Name of a data set's folder: ``dsb2018`` for ``.../dsb2018`` and for ``.../dsb2018/train``."""
    folder = Path(os.path.abspath(folder))  # gives "." a name; unlike resolve(), keeps the name of a link
    return folder.parent.name if folder.name == "train" and folder.parent.name else folder.name


def _picture_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = sorted(path.name for path in _listed(folder) if path.is_dir())
    if not names:
        raise InputError(f"{folder}: no folder with an {IMAGE} found")
    for name in names:
        if not (folder / name / IMAGE).is_file():
            raise InputError(f"{folder / name}: no {IMAGE} in this folder")
    return names


def _class_files(folder: Path, num_classes: int | None) -> dict[int, Path]:
    """Label file of each class, ascending.

    Other files are ignored, such as class1.tif.aux.xml, or a PNG preview whose name does not start with "class".
    """
    files: dict[int, Path] = {}
    for path in _listed(folder):
        name, ending = path.name.lower(), path.suffix.lower()
        if path.name == IMAGE or not (ending in _TIFF or (ending in _OTHER and _LOOKS_LIKE_CLASS_FILE.match(name))):
            continue
        match = _CLASS_FILE.fullmatch(name)
        if match is None:
            raise InputError(f"{path}: not a class file; expected {IMAGE}, class1.tif, class2.tif, ... (TIFF or PNG)")
        number = int(match[1])
        if num_classes is not None and number > num_classes:
            raise InputError(f"{path}: class {number}, but there are {num_classes} classes")
        if number in files:
            raise InputError(f"{path}: class {number} has another file, {files[number].name}")
        files[number] = path
    return dict(sorted(files.items()))


def _listed(folder: Path) -> list[Path]:
    """Entries of a folder, sorted, without hidden files and those that operating systems add."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX", "@eaDir")))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
