"""Label planes against numpy brute force and pycocotools."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from maskrcnn.structures import InstanceLabels

small_planes = hnp.arrays(
    np.int32,
    st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 0, 1, 2, 7, 70_000, 2**31 - 1]),
)


def brute_force(planes: np.ndarray) -> list[tuple[int, int, list[int], int]]:
    found = []
    for p, values in enumerate(planes):
        for i in np.unique(values[values != 0]):
            y, x = np.nonzero(values == i)
            found.append((p, int(i), [x.min(), y.min(), x.max() + 1, y.max() + 1], len(x)))
    return found


def as_tuples(labels: InstanceLabels) -> list[tuple[int, int, list[float], int]]:
    columns = labels.plane, labels.ids, labels.boxes, labels.areas
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(small_planes)
def test_from_planes_is_brute_force(planes: np.ndarray) -> None:
    labels = InstanceLabels.from_planes(torch.from_numpy(planes), range(1, len(planes) + 1))
    assert as_tuples(labels) == brute_force(planes)
    assert labels.classes.tolist() == [p + 1 for p, *_ in brute_force(planes)]
    dtypes = [t.dtype for t in (labels.planes, labels.plane, labels.ids, labels.classes, labels.boxes, labels.areas)]
    assert dtypes == [torch.int32, torch.int64, torch.int64, torch.int64, torch.float32, torch.int64]
    assert labels.boxes.shape == (len(labels), 4)


@given(small_planes)
def test_rle_is_byte_for_byte_that_of_pycocotools(planes: np.ndarray) -> None:
    labels = InstanceLabels.from_planes(torch.from_numpy(planes), range(1, len(planes) + 1))
    rles = labels.to_rle()
    assert len(rles) == len(labels)
    for i, rle in enumerate(rles):
        assert rle == coco_mask.encode(np.asfortranarray(labels.mask(i).numpy().astype(np.uint8)))


@settings(max_examples=50)
@given(small_planes, st.data())
def test_with_planes_keeps_order_and_drops_what_vanished(planes: np.ndarray, data: st.DataObject) -> None:
    tensor = torch.from_numpy(planes)
    labels = InstanceLabels.from_planes(tensor, range(1, len(planes) + 1))
    labels = labels.select(torch.tensor(data.draw(st.permutations(range(len(labels)))), dtype=torch.int64))
    y, x = (data.draw(st.integers(0, n - 1)) for n in planes.shape[1:])
    cropped = labels.with_planes(tensor[:, y:, x:].flip(2))
    expected = {(p, i): (box, area) for p, i, box, area in brute_force(planes[:, y:, x:][:, :, ::-1])}
    order = [key for key in zip(labels.plane.tolist(), labels.ids.tolist(), strict=True) if key in expected]
    assert as_tuples(cropped) == [(*key, *expected[key]) for key in order]
    assert cropped.classes.tolist() == [p + 1 for p, _ in order]


def test_one_id_in_two_pieces_is_one_instance() -> None:
    plane = torch.zeros((1, 6, 8), dtype=torch.int64)
    plane[0, 1, 1] = 5
    plane[0, 4, 6] = 5
    labels = InstanceLabels.from_planes(plane, [3])
    assert len(labels) == 1
    assert labels.boxes.tolist() == [[1, 1, 7, 5]]
    assert labels.areas.tolist() == [2]
    assert labels.classes.tolist() == [3]


def test_one_pixel_has_a_box_of_one_by_one() -> None:
    plane = torch.zeros((1, 3, 3), dtype=torch.int32)
    plane[0, 2, 1] = 1
    assert InstanceLabels.from_planes(plane, [1]).boxes.tolist() == [[1, 2, 2, 3]]


def test_select_leaves_the_pixels_but_nobody_owns_them() -> None:
    labels = InstanceLabels.from_planes(torch.tensor([[[1, 2, 3]]], dtype=torch.int32), [1])
    one = labels.select(labels.ids == 2)
    assert one.ids.tolist() == [2]
    assert one.with_planes(one.planes).ids.tolist() == [2]
    assert len(one.to_rle()) == 1


def test_empty() -> None:
    labels = InstanceLabels.empty(4, 7)
    assert (len(labels), labels.size, labels.to_rle()) == (0, (4, 7), [])
    assert labels.padded(8, 8).size == (8, 8)
    assert labels.boxes.shape == (0, 4)


def test_mixed_classes_in_one_plane() -> None:
    planes = torch.tensor([[[4, 4, 0, 9]]], dtype=torch.int32)
    zero = torch.zeros(3, dtype=torch.int64)
    labels = InstanceLabels.from_instances(planes, zero, torch.tensor([9, 6, 4]), torch.tensor([2, 5, 1]))
    assert labels.ids.tolist() == [9, 4]
    assert labels.classes.tolist() == [2, 1]
    assert labels.areas.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("planes", "classes", "message"),
    [
        (torch.zeros((2, 2), dtype=torch.int32), [1], "expected \\[P, H, W\\]"),
        (torch.zeros((1, 2, 2)), [1], "integer type"),
        (torch.zeros((1, 2, 2), dtype=torch.int32), [1, 2], "2 classes for 1 planes"),
        (torch.full((1, 2, 2), -3, dtype=torch.int32), [1], "value -3"),
    ],
)
def test_errors(planes: torch.Tensor, classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceLabels.from_planes(planes, classes)


def test_hundreds_of_cells_take_milliseconds() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:512, :512]
    planes = np.zeros((4, 512, 512), np.int32)
    for i in range(600):
        cy, cx, r = rng.uniform(0, 512), rng.uniform(0, 512), rng.uniform(2, 14)
        planes[i % 4][(y - cy) ** 2 + (x - cx) ** 2 < r * r] = i + 1
    labels = InstanceLabels.from_planes(torch.from_numpy(planes), [1, 2, 3, 4])
    times = []
    for _ in range(10):
        start = time.perf_counter()
        labels.with_planes(labels.planes)
        times.append(time.perf_counter() - start)
    assert len(labels) > 400
    assert min(times) < 0.02  # 2 ms when measured alone; one pass an instance would take 100 ms and more
