"""COCO results: checked before they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskrcnn.data.hw3 import TestImage
from maskrcnn.errors import InputError
from maskrcnn.export.coco import check_results, write_results
from tests.export.cells import two_cells


def test_results_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    image = TestImage(Path("a.tif"), "a.tif", 7, 48, 64)
    entries = two_cells().to_coco(7)
    write_results(tmp_path, entries, [image], num_classes=4)
    wrong = [{**entries[0], "category_id": 5}]
    with pytest.raises(RuntimeError, match="does not fit"):
        check_results(wrong, [image], num_classes=4)
    with pytest.raises(RuntimeError, match="does not fit"):
        check_results(entries, [TestImage(Path("a.tif"), "a.tif", 7, 64, 48)], num_classes=4)
    write_results(tmp_path, [], [image], num_classes=4)
    assert json.loads((tmp_path / "test-results.json").read_text()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_results(tmp_path / "file", [], [], num_classes=1)
