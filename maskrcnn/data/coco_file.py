"""Reads the JSON of a COCO annotation file, checks and indexes it, before any mask is decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn.data.json_file import read_json
from maskrcnn.data.segmentation import masks_marked_as_crowds, why_skipped
from maskrcnn.errors import InputError

MAX_PIXELS = 2**31 - 1
"""Maximum number of pixels of a picture: COCO's run lengths are 32-bit numbers."""


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """One instance: its name in messages, its class 1..K, and its segmentation, whose contents are not checked yet."""

    name: str
    label: int
    segmentation: Any


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One picture: its id (a number or text), its (H, W) in pixels or None if the file does not give it, and its
    instances."""

    image_id: Any
    size: tuple[int, int] | None
    annotations: list[CocoAnnotation]


@dataclass(frozen=True)
class CocoFile:
    """The contents of a COCO annotation file.

    Attributes:
        images: by file name, in the order of the file.
        categories: the names of the categories by id, ascending; the first one is class 1.
        skipped: number of skipped annotations by reason.
        total: number of annotations in the file, skipped ones included.
        marked: number of annotations that are read although they are marked as crowds
            (:func:`maskrcnn.data.segmentation.masks_marked_as_crowds`).
    """

    images: dict[str, CocoImage]
    categories: dict[int, str]
    skipped: Counter[str]
    total: int
    marked: int = 0

    def remarks(self) -> list[str]:
        """Messages: how many annotations were skipped and why, and how many marked as crowds were not."""
        lines = []
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.skipped.most_common())
            lines.append(f"{self.skipped.total()} of {self.total} annotations skipped: {reasons}")
        if self.marked:
            lines.append(f"all {self.marked} masks are marked as crowds (iscrowd), as CVAT does; read as instances")
        return lines


def read_coco_file(path: Path) -> CocoFile:
    """Read and check an annotation file.

    Lists of entries may also be objects whose values are the entries, as LIVECell's annotations are. Annotations that
    other tools skip are skipped: crowds, those of pictures that the file does not name, and those without a usable
    segmentation (:func:`maskrcnn.data.segmentation.why_skipped`). Where a tool marked all masks as crowds, they are
    read.

    Raises:
        InputError: the file is missing or not a COCO file; an id or file name is missing, of a wrong type or given
            twice; a size is invalid; an annotation has an unknown category.
    """
    contents = read_json(path)
    if not isinstance(contents, dict):
        raise InputError(f"{path}: not a COCO annotation file: a {type(contents).__name__}, expected an object")
    categories = _categories(path, contents)
    images = _images(path, contents)
    by_id = {image.image_id: image for image in images.values()}
    classes = {category: label for label, category in enumerate(categories, start=1)}
    skipped: Counter[str] = Counter()
    entries = list(_entries(path, contents, "annotations"))
    marked = masks_marked_as_crowds([entry for _, entry in entries])
    for name, entry in entries:
        if (reason := why_skipped(entry, skip_crowds=not marked)) is not None:
            skipped[reason] += 1
            continue
        image_id: Any = entry.get("image_id")
        if type(image_id) not in (int, float, str):
            raise InputError(f"{path}: {name} has the image_id {_short(image_id)}; expected a number or text")
        image = by_id.get(image_id)
        if image is None:
            skipped["of pictures that the file does not name"] += 1
            continue
        category = entry.get("category_id")
        if type(category) not in (int, float) or category not in classes:
            raise InputError(f"{path}: {name} has the unknown category {_short(category)}")
        image.annotations.append(CocoAnnotation(name, classes[category], entry["segmentation"]))
    return CocoFile(images, categories, skipped, len(entries), marked)


def _categories(path: Path, contents: dict[str, Any]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for name, entry in _entries(path, contents, "categories"):
        number, text = entry.get("id"), entry.get("name")
        if type(number) is not int:
            raise InputError(f"{path}: {name} has the id {_short(number)}; expected a whole number")
        if number in categories:
            raise InputError(f"{path}: the category id {number} is given twice")
        categories[number] = str(number if text is None else text)
    if not categories:
        raise InputError(f"{path}: names no category")
    return dict(sorted(categories.items()))


def _images(path: Path, contents: dict[str, Any]) -> dict[str, CocoImage]:
    images: dict[str, CocoImage] = {}
    ids = set()
    for name, entry in _entries(path, contents, "images"):
        number: Any = entry.get("id")
        file_name = entry.get("file_name")
        if type(number) not in (int, str):
            raise InputError(f"{path}: {name} has the id {_short(number)}; expected a number or text")
        if not isinstance(file_name, str) or not file_name:
            raise InputError(f"{path}: {name} has the file_name {_short(file_name)}; expected text")
        if number in ids or file_name in images:
            raise InputError(f"{path}: an image id or a file name is given twice: {_short(number)}, {file_name}")
        ids.add(number)
        images[file_name] = CocoImage(number, _size(path, name, entry), [])
    if not images:
        raise InputError(f"{path}: names no picture")
    return images


def _size(path: Path, name: str, entry: dict[str, Any]) -> tuple[int, int] | None:
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    if None in sides:
        return None
    whole = [int(side) for side in sides if type(side) in (int, float) and side >= 1 and side % 1 == 0]
    if len(whole) != 2 or whole[0] * whole[1] > MAX_PIXELS:
        raise InputError(
            f"{path}: {name} has height {_short(sides[0])} and width {_short(sides[1])}; expected whole numbers "
            f"with a product of at most {MAX_PIXELS} pixels"
        )
    return whole[0], whole[1]


def _entries(path: Path, contents: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a list, or of an object (LIVECell), each with its name for messages."""
    found = contents.get(key)
    if not isinstance(found, list | dict):
        raise InputError(f"{path}: not a COCO annotation file: {key!r} is {_short(found)}, expected a list of objects")
    for index, entry in found.items() if isinstance(found, dict) else enumerate(found):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {key}[{index}] is {_short(entry)}; expected an object")
        given = entry.get("id")
        singular = {"images": "image", "categories": "category", "annotations": "annotation"}[key]
        yield f"{key}[{index}]" if given is None else f"{singular} {_short(given)}", entry


def _short(value: object) -> str:
    """The value as JSON, truncated if it is long."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
