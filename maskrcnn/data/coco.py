"""COCO annotation files: written from any data set, and read as one.

``python -m maskrcnn.data.coco DIR -o annotations.json`` converts a folder in the HW3 layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn.data.dataset import CellDataset, Transform
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.picture import DEFAULT_PERCENTILES, read_image
from maskrcnn.data.reader import image_size
from maskrcnn.errors import InputError, one_line_errors
from maskrcnn.files import atomic_write
from maskrcnn.structures import InstanceLabels


def to_coco(dataset: CellDataset) -> dict[str, Any]:
    """COCO ground truth of every picture: RLE with text counts, boxes [x, y, w, h], areas, categories 1..K."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, image_id in enumerate(dataset.image_ids):
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
    """Pictures and instances of a COCO annotation file: RLE, uncompressed RLE and polygons; crowds are skipped.

    Categories become classes 1..K in the order of their ids. Instances that overlap go to different label planes, as
    few as a first fit gives. The source of the pictures is the file's name without ``.json``.

    Args:
        path: the annotation file.
        image_root: folder of the pictures; default: the folder of the file.
        percentiles, transform, channels: see :class:`maskrcnn.data.hw3.Hw3Folder`.
        num_classes: default: the number of categories.

    Raises:
        InputError: for a file that is missing or no COCO file, or more categories than ``num_classes``; when a picture
            is read, for one that is missing, or of another size, or a segmentation that does not fit.
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
        contents = _read_json(self.path)
        try:
            categories = sorted(contents["categories"], key=lambda c: c["id"])
            self._category_names = [str(c.get("name", c["id"])) for c in categories]
            self._classes = {c["id"]: k for k, c in enumerate(categories, start=1)}
            self._entries = {str(image["file_name"]): image for image in contents["images"]}
            self._annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in contents["images"]}
            for annotation in contents["annotations"]:
                if not annotation.get("iscrowd", 0):
                    self._annotations[annotation["image_id"]].append(annotation)
        except (KeyError, TypeError) as error:
            raise InputError(f"{self.path}: not a COCO annotation file: {error!r}") from error
        if len(self._annotations) != len(contents["images"]) or len(self._entries) != len(contents["images"]):
            raise InputError(f"{self.path}: an image id or a file name is given twice")
        if not self._entries:
            raise InputError(f"{self.path}: names no picture")
        self.names = list(self._entries)
        self.image_ids = [entry["id"] for entry in self._entries.values()]
        self.sources = [self.path.stem] * len(self.names)
        self.num_classes = num_classes if num_classes is not None else len(categories)
        if len(categories) > self.num_classes:
            raise InputError(f"{self.path}: {len(categories)} categories, but there are {self.num_classes} classes")

    @property
    def class_names(self) -> list[str]:
        return self._category_names + super().class_names[len(self._category_names) :]

    def read_image(self, index: int) -> Tensor:
        path = self.image_root / self.names[index]
        image = read_image(path, self.percentiles, self.channels)
        height, width = self._size(index)
        if image.shape[:2] != (height, width):
            found = f"{image.shape[0]}x{image.shape[1]}"
            raise InputError(f"{path}: {found} pixels, but {self.path.name} says {height}x{width}")
        return image

    def read_labels(self, index: int) -> InstanceLabels:
        height, width = self._size(index)
        packer = _PlanePacker(height, width)
        classes = []
        for annotation in self._annotations[self.image_ids[index]]:
            rle = self._rle(annotation, height, width)
            if packer.add(rle):
                classes.append(self._class(annotation))
        return packer.labels(classes)

    def _size(self, index: int) -> tuple[int, int]:
        entry = self._entries[self.names[index]]
        if "height" in entry and "width" in entry:
            return int(entry["height"]), int(entry["width"])
        return image_size(self.image_root / self.names[index])

    def _class(self, annotation: dict[str, Any]) -> int:
        category = annotation.get("category_id")
        if category not in self._classes:
            raise InputError(f"{self.path}: annotation {annotation.get('id')} has the unknown category {category}")
        return self._classes[category]

    def _rle(self, annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
        segmentation = annotation.get("segmentation")
        try:
            if isinstance(segmentation, list):
                rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):  # type: ignore[index]
                rle = coco_mask.frPyObjects(segmentation, height, width)
            else:
                rle = segmentation
            if list(rle["size"]) != [height, width]:
                raise ValueError(f"size {rle['size']}, the picture has {[height, width]}")
        except Exception as error:  # pycocotools raises whatever its C code meets
            raise InputError(f"{self.path}: the segmentation of annotation {annotation.get('id')}: {error}") from error
        return rle


@dataclass
class _PlanePacker:
    """Puts instances into the first label plane where their pixels are free."""

    height: int
    width: int

    def __post_init__(self) -> None:
        self.planes: list[np.ndarray] = []
        self.plane: list[int] = []
        self.ids: list[int] = []

    def add(self, rle: dict[str, Any]) -> bool:
        """Whether the instance has a pixel."""
        x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
        if w == 0 or h == 0:
            return False
        window = (slice(y, y + h), slice(x, x + w))
        mask = coco_mask.decode(rle)[window].astype(bool)
        number = next((n for n, plane in enumerate(self.planes) if not plane[window][mask].any()), len(self.planes))
        if number == len(self.planes):
            self.planes.append(np.zeros((self.height, self.width), np.int32))
        self.plane.append(number)
        self.ids.append(len(self.ids) + 1)
        self.planes[number][window][mask] = self.ids[-1]
        return True

    def labels(self, classes: Sequence[int]) -> InstanceLabels:
        if not self.planes:
            return InstanceLabels.empty(self.height, self.width)
        return InstanceLabels.from_instances(
            torch.from_numpy(np.stack(self.planes)),
            torch.tensor(self.plane),
            torch.tensor(self.ids),
            torch.tensor(classes),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(contents, dict):
        raise InputError(f"{path}: not a COCO annotation file: expected an object")
    return contents


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a folder in the HW3 layout to a COCO annotation file."""

    data: tyro.conf.Positional[Path]
    """Folder with train/<name>/image.tif and class1.tif, ..."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("annotations.json")
    """The file to write; the pictures are named as <name>/image.tif."""


def convert(options: ConvertOptions) -> None:
    """Write ``options.output``, beside first and then renamed."""
    contents = to_coco(Hw3Folder(options.data))
    with atomic_write(options.output) as beside:
        beside.write_text(json.dumps(contents))
    print(f"{options.output}: {len(contents['images'])} pictures, {len(contents['annotations'])} cells")


if __name__ == "__main__":
    with one_line_errors():
        convert(tyro.cli(ConvertOptions))
