"""The JSON of COCO files: what is read, what is skipped, and what is rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskrcnn.data.coco_file import read_coco_file
from maskrcnn.errors import InputError

IMAGES = [{"id": 5, "file_name": "a.png", "height": 20, "width": 30}]
CATEGORIES = [{"id": 17, "name": "dot"}, {"id": 3, "name": "ring"}]
SQUARE: dict[str, Any] = {"id": 8, "image_id": 5, "category_id": 3, "segmentation": [[2, 3, 12, 3, 12, 9, 2, 9]]}


def write(folder: Path, annotations: object, encoding: str = "utf-8", **changes: object) -> Path:
    contents = {"images": IMAGES, "categories": CATEGORIES, "annotations": annotations}
    path = folder / "c.json"
    path.write_text(json.dumps(contents | changes), encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("annotations", [[SQUARE], {"1": SQUARE}], ids=["list", "as LIVECell's"])
def test_a_file_is_indexed(tmp_path: Path, encoding: str, annotations: object) -> None:
    found = read_coco_file(write(tmp_path, annotations, encoding))
    assert list(found.categories.items()) == [(3, "ring"), (17, "dot")]
    image = found.images["a.png"]
    assert (image.image_id, image.size) == (5, (20, 30))
    assert [(a.name, a.label, a.segmentation) for a in image.annotations] == [
        ("annotation 8", 1, SQUARE["segmentation"])
    ]
    assert (found.total, found.remarks()) == (1, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iscrowd": 1}, "crowds"),
        ({"segmentation": []}, "without a segmentation"),
        ({"segmentation": None}, "without a segmentation"),
        ({"segmentation": [[]]}, "with polygons of fewer than three points"),
        ({"segmentation": [[1, 2, 3, 4]]}, "with polygons of fewer than three points"),
        ({"segmentation": [[2, 3, 12, 3, 12, 9, 2]]}, "with an odd number of coordinates"),
        ({"image_id": 77}, "of pictures that the file does not name"),
    ],
)
def test_what_other_tools_skip_is_skipped_and_counted(tmp_path: Path, change: dict, reason: str) -> None:
    found = read_coco_file(write(tmp_path, [SQUARE | change, SQUARE, SQUARE | change]))
    assert len(found.images["a.png"].annotations) == 1
    assert found.remarks() == [f"2 of 3 annotations skipped: 2 {reason}"]


def test_a_missing_segmentation_is_skipped(tmp_path: Path) -> None:
    without = {key: value for key, value in SQUARE.items() if key != "segmentation"}
    assert read_coco_file(write(tmp_path, [without])).skipped == {"without a segmentation": 1}


RUNS = {"segmentation": {"size": [20, 30], "counts": [21, 4, 575]}}
OF_CVAT = {"attributes": {"occluded": False, "rotation": 0.0}}


@pytest.mark.parametrize(
    ("annotations", "read"),
    [
        ([SQUARE | RUNS | {"iscrowd": 1}] * 2, 2),  # of any tool: a file of nothing but crowds
        ([SQUARE | RUNS | OF_CVAT | {"iscrowd": 1}, SQUARE | OF_CVAT], 2),  # brush and polygons
        ([SQUARE | RUNS | {"iscrowd": 1}, SQUARE], 1),  # as COCO has it
        ([SQUARE | RUNS | OF_CVAT | {"iscrowd": 1}, SQUARE | RUNS | OF_CVAT | {"iscrowd": 0}], 1),
        ([SQUARE | RUNS | {"iscrowd": 1, "attributes": 7}, SQUARE], 1),
    ],
)
def test_masks_that_a_tool_marked_as_crowds_are_instances(tmp_path: Path, annotations: list[dict], read: int) -> None:
    found = read_coco_file(write(tmp_path, annotations))
    assert len(found.images["a.png"].annotations) == read
    marked = sum(annotation.get("iscrowd", 0) for annotation in annotations)
    kept = f"all {marked} masks are marked as crowds (iscrowd), as CVAT does; read as instances"
    assert found.remarks() == ([kept] if read == 2 else [f"1 of {len(annotations)} annotations skipped: 1 crowds"])


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([None], {}, r"annotations\[0\] is null; expected an object"),
        ([SQUARE | {"category_id": 9}], {}, "annotation 8 has the unknown category 9"),
        ([SQUARE | {"category_id": [3]}], {}, r"annotation 8 has the unknown category \[3\]"),
        ([SQUARE | {"id": None, "image_id": [5]}], {}, r"annotations\[0\] has the image_id \[5\]"),
        (None, {}, "not a COCO annotation file: 'annotations' is null"),
        ([], {"images": []}, "names no picture"),
        ([], {"images": IMAGES * 2}, "given twice: 5, a.png"),
        ([], {"images": [IMAGES[0] | {"file_name": None}]}, "image 5 has the file_name null; expected text"),
        ([], {"images": [IMAGES[0] | {"id": True}]}, "image true has the id true"),
        ([], {"images": [IMAGES[0] | {"height": 10**9, "width": 10**9}]}, "image 5 has height 1000000000"),
        ([], {"images": [IMAGES[0] | {"height": "20"}]}, 'image 5 has height "20"'),
        ([], {"categories": None}, "not a COCO annotation file: 'categories' is null"),
        ([], {"categories": []}, "names no category"),
        ([], {"categories": CATEGORIES * 2}, "the category id 17 is given twice"),
        ([], {"categories": [{"id": "a"}]}, 'category "a" has the id "a"; expected a whole number'),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, annotations: object, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_coco_file(write(tmp_path, annotations, **changes))


@pytest.mark.parametrize(
    ("text", "message"), [(b"[1", "not JSON"), (b"\xff", "not JSON"), (b"[" * 10**5, "not JSON"), (b"3", "a int, exp")]
)
def test_files_that_are_no_annotations(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "c.json").write_bytes(text)
    with pytest.raises(InputError, match=message):
        read_coco_file(tmp_path / "c.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c\.json: cannot be read: No such file"):
        read_coco_file(tmp_path / "c.json")


def test_a_category_without_a_name_has_its_id_for_one(tmp_path: Path) -> None:
    found = read_coco_file(write(tmp_path, [], categories=[{"id": 0, "name": None}, {"id": 5}]))
    assert found.categories == {0: "0", 5: "5"}
