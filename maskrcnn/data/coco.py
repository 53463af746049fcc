"""Reading a COCO annotation file as a data set, and the ground truth of a data set in COCO's format."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn import distributed
from maskrcnn.data.coco_file import read_coco_file
from maskrcnn.data.dataset import CellDataset, Transform, label_progress
from maskrcnn.data.picture import DEFAULT_PERCENTILES, read_image
from maskrcnn.data.reader import image_size, only_picture, split_place
from maskrcnn.data.segmentation import checked_rle
from maskrcnn.data.stored import StoredPicture
from maskrcnn.errors import InputError
from maskrcnn.structures import InstanceLabels
from maskrcnn.structures.rle import label_planes


def to_coco(dataset: CellDataset) -> dict[str, Any]:
    """A data set as COCO ground truth: RLE with text counts, boxes [x, y, w, h], areas, categories 1..K."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, image_id in enumerate(label_progress(dataset.image_ids, len(dataset))):
        labels = dataset.labels(index)
        height, width = labels.size
        images.append({"id": image_id, "file_name": dataset.file_name(index), "height": height, "width": width})
        boxes = torch.cat([labels.boxes[:, :2], labels.boxes[:, 2:] - labels.boxes[:, :2]], dim=1).tolist()
        rows = zip(labels.to_rle(), labels.classes.tolist(), labels.areas.tolist(), boxes, strict=True)
        for rle, category, area, box in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "area": area,
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(dataset.class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


class CocoDataset(CellDataset):
    """Data set of a COCO annotation file, with masks as RLE, uncompressed RLE or polygons.

    Categories become classes 1..K in the order of their ids, which ``category_ids`` keeps. Annotations that other tools
    skip, such as crowds, are skipped (:func:`maskrcnn.data.coco_file.read_coco_file`) and counted in a line on stderr.
    Overlapping instances go to different label planes, by first fit. The pictures' source is the file's name without
    ``.json``.

    Args:
        path: the annotation file.
        image_root: folder of the pictures; default: the folder of the file.
        percentiles, transform, channels: see :class:`maskrcnn.data.hw3.Hw3Folder`.
        num_classes: default: the number of categories.

    Raises:
        InputError: the file is missing or not a COCO file, or has more categories than ``num_classes``; when a picture
            or its labels are read: it is missing or has another size, or a segmentation is invalid.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path | None = None,
        percentiles: tuple[float, float] | None = DEFAULT_PERCENTILES,
        transform: Transform | None = None,
        num_classes: int | None = None,
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.image_root = Path(image_root) if image_root is not None else self.path.parent
        self.percentiles, self.channels, self.transform = percentiles, channels, transform
        contents = read_coco_file(self.path)
        for remark in contents.remarks() if distributed.is_main() else ():
            print(f"warning: {self.path}: {remark}", file=sys.stderr)
        self._images, self._categories = contents.images, contents.categories
        self.names = list(self._images)
        self.image_ids = [image.image_id for image in self._images.values()]
        self.sources = [self.path.stem] * len(self.names)
        self.num_classes = num_classes if num_classes is not None else len(self._categories)
        if len(self._categories) > self.num_classes:
            count = len(self._categories)
            raise InputError(f"{self.path}: {count} categories, but there are {self.num_classes} classes")

    @property
    def class_names(self) -> list[str]:
        return [*self._categories.values(), *super().class_names[len(self._categories) :]]

    @property
    def category_ids(self) -> list[int]:
        ids = list(self._categories)
        return ids + [max(ids) + n for n in range(1, 1 + self.num_classes - len(ids))]

    def class_counts(self) -> np.ndarray:
        """Number of annotations per picture and class, int64 [pictures, K], without decoding their masks."""
        counts = np.zeros((len(self), self.num_classes), np.int64)
        for index, name in enumerate(self.names):
            for annotation in self._images[name].annotations:
                counts[index, annotation.label - 1] += 1
        return counts

    def read_image(self, index: int) -> Tensor:
        image = read_image(self._path(index), self.percentiles, self.channels)
        self._check_size(index, (image.shape[0], image.shape[1]))
        return image

    def open_image(self, index: int) -> StoredPicture:
        stored = only_picture(self._path(index), self.channels)
        self._check_size(index, stored.size)
        return stored

    def read_labels(self, index: int) -> InstanceLabels:
        """See :meth:`CellDataset.read_labels`; the time grows with the cells' pixels, not cells times pixels."""
        height, width = self._size(index)
        annotations = self._images[self.names[index]].annotations
        rles = []
        for annotation in annotations:
            try:
                rles.append(checked_rle(annotation.segmentation, height, width))
            except ValueError as error:
                raise InputError(f"{self.path}: the segmentation of {annotation.name}: {error}") from error
        planes = torch.from_numpy(label_planes(rles, (height, width)))
        found = InstanceLabels.from_planes(planes, [1] * len(planes))  # ordered by plane; classes are set below
        labels = found.select(torch.argsort(found.ids))  # in the order of the file
        classes = torch.tensor([annotation.label for annotation in annotations], dtype=torch.int64)
        return replace(labels, classes=classes[labels.ids - 1])

    def _check_size(self, index: int, found: tuple[int, int]) -> None:
        height, width = self._size(index)
        if found != (height, width):
            pixels = f"{found[0]}x{found[1]} pixels"
            raise InputError(f"{self._path(index)}: {pixels}, but {self.path.name} says {height}x{width}")

    def _size(self, index: int) -> tuple[int, int]:
        size = self._images[self.names[index]].size
        return size if size is not None else image_size(self._path(index))

    def picture_path(self, index: int) -> Path:
        """The picture's file, which may be missing; backslashes in its name are tried as slashes too."""
        name = self.names[index]
        given, of_windows = self.image_root / name, self.image_root / name.replace("\\", "/")
        return of_windows if not _exists(given) and _exists(of_windows) else given

    def _path(self, index: int) -> Path:
        path = self.picture_path(index)
        if not _exists(path):
            raise InputError(f"{path}: no such file; --image-root FOLDER says where the pictures lie")
        return path


def _exists(path: Path) -> bool:
    return os.path.exists(split_place(path)[0])  # unlike Path.exists, no OSError for an invalid name
