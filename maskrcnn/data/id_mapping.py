"""Test pictures in the HW3 layout: ``test_release/`` and the JSON file with the id and size of each picture."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from maskrcnn.data.json_file import read_json
from maskrcnn.errors import InputError

MAPPING = "test_image_name_to_ids.json"


@dataclass(frozen=True)
class TestImage:
    """A picture to predict: its file, its name and id in results, and its size in pixels."""

    __test__ = False  # pytest would collect it because of its name

    path: Path
    file_name: str
    image_id: int
    height: int
    width: int


def read_test_release(root: str | Path) -> list[TestImage]:
    """The pictures of ``root/test_release`` in the order of ``root/test_image_name_to_ids.json``.

    Raises:
        InputError: the folder or mapping is missing, an entry has no name, id or size, a file is missing or named
            twice, or an id is given twice. The pictures are not opened.
    """
    root = Path(root)
    mapping = root / MAPPING
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    entries = read_json(mapping)
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
    if not os.path.isfile(path):  # unlike Path.is_file, no OSError for an invalid name
        raise InputError(f"{mapping}: names {name}, which is not in {folder}")
    return TestImage(path, name, *numbers)
