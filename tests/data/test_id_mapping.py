"""Pictures to predict with their id mapping, and mappings that do not fit."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from maskrcnn.data.id_mapping import read_test_release
from maskrcnn.errors import InputError
from tests.data.mutations import mutated


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, which are not opened."""
    (tmp_path / "test_release").mkdir()
    for number in (1, 2):
        (tmp_path / "test_release" / f"{number}.tif").write_bytes(b"")
    mapping = [{"file_name": f"{n}.tif", "id": n + 10, "height": 20, "width": 30} for n in (1, 2)]
    (tmp_path / "test_image_name_to_ids.json").write_text(json.dumps(mapping))
    return tmp_path


def test_the_mapping_gives_names_ids_and_sizes(folder: Path) -> None:
    images = read_test_release(folder)
    assert [(i.file_name, i.image_id, i.height, i.width) for i in images] == [
        ("1.tif", 11, 20, 30),
        ("2.tif", 12, 20, 30),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "3.tif"}, r"names 3\.tif, which is not in"),
        ({"file_name": "1.tif"}, r"1\.tif is named twice"),
        ({"id": 11}, "the id 11 is given twice"),
        ({"width": "30"}, "needs a text and three whole numbers"),
        ({"id": None}, "needs a text and three whole numbers"),
    ],
)
def test_mappings_that_do_not_fit(folder: Path, change: dict, message: str) -> None:
    path = folder / "test_image_name_to_ids.json"
    first, second = json.loads(path.read_text())
    path.write_text(json.dumps([first, second | change]))
    with pytest.raises(InputError, match=message):
        read_test_release(folder)


@pytest.mark.parametrize(
    ("text", "message"), [("[1", "not JSON"), ("{}", "expected a list"), ('[{"id": 1}]', "lacks one")]
)
def test_mappings_that_are_none(folder: Path, text: str, message: str) -> None:
    (folder / "test_image_name_to_ids.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_test_release(folder)


def test_a_missing_mapping(folder: Path) -> None:
    (folder / "test_image_name_to_ids.json").unlink()
    with pytest.raises(InputError, match=r"test_image_name_to_ids\.json: cannot be read"):
        read_test_release(folder)


def test_a_mapping_with_a_byte_order_mark(folder: Path) -> None:
    path = folder / "test_image_name_to_ids.json"
    path.write_text(path.read_text(), "utf-8-sig")
    assert len(read_test_release(folder)) == 2


def test_random_changes_of_a_mapping_are_read_or_refused(folder: Path) -> None:
    path = folder / "test_image_name_to_ids.json"
    contents = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(400):
        path.write_text(json.dumps(mutated(contents, rng)))
        with contextlib.suppress(InputError):
            read += len(read_test_release(folder)) > 0
    assert 20 < read < 380
