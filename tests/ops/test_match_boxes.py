"""Matching against torchvision's Matcher on the full matrix, and against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn import ops
from tests.ops.test_nms import random_boxes


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize(("high", "low"), [(0.7, 0.3), (0.5, 0.5)])
@pytest.mark.parametrize(
    ("count", "targets", "extent"), [(3000, 40, 200), (500, 300, 100), (3000, 1, 5000), (7, 90, 50)]
)
@pytest.mark.parametrize("whole", [False, True])
def test_equals_torchvision(
    count: int, targets: int, extent: float, whole: bool, high: float, low: float, allow_low_quality: bool
) -> None:
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.detection._utils import Matcher

    anchors, cells = random_boxes(count, extent, 40, 0), random_boxes(targets, extent, 40, 1)
    if whole:  # many equal overlaps
        anchors, cells = (anchors / 8).round() * 8, (cells / 8).round() * 8
        anchors[:, 2:] += 8
        cells[:, 2:] += 8
    expected = Matcher(high, low, allow_low_quality)(torchvision.ops.box_iou(cells, anchors))
    assert torch.equal(ops.match_boxes(anchors, cells, high, low, allow_low_quality), expected)


@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_odd_targets_equal_torchvision(allow_low_quality: bool) -> None:
    """One over the whole picture, one far away, slivers, among many of a size."""
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.detection._utils import Matcher

    odd = torch.tensor([[0.0, 0, 1000, 1000], [1e7, 1e7, 1e7 + 20, 1e7 + 20], [0, 500, 1000, 501], [300, 0, 301, 900]])
    anchors = torch.cat([random_boxes(3000, 1000, 60, 0), odd + 1, odd * 0.9])
    targets = torch.cat([odd[:2], random_boxes(200, 1000, 30, 1), odd[2:]])
    expected = Matcher(0.5, 0.3, allow_low_quality)(torchvision.ops.box_iou(targets, anchors))
    assert torch.equal(ops.match_boxes(anchors, targets, 0.5, 0.3, allow_low_quality), expected)


box = st.tuples(*[st.integers(-6, 6)] * 2, *[st.integers(1, 6)] * 2)


@settings(deadline=None, max_examples=150)
@given(st.lists(box, max_size=40), st.lists(box, max_size=12), st.booleans(), st.sampled_from([(0.7, 0.3), (0.5, 0.5)]))
def test_equals_its_definition(a: list, t: list, allow_low_quality: bool, thresholds: tuple[float, float]) -> None:
    anchors, targets = (torch.tensor(rows, dtype=torch.float64).reshape(-1, 4) for rows in (a, t))
    anchors[:, 2:] += anchors[:, :2]
    targets[:, 2:] += targets[:, :2]
    ours = ops.match_boxes(anchors, targets, *thresholds, allow_low_quality)
    assert torch.equal(ours, ops.match_boxes_reference(anchors, targets, *thresholds, allow_low_quality))


def test_by_hand() -> None:
    targets = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 1], [20, 0, 30, 4], [50, 50, 60, 60]])
    assert ops.match_boxes(anchors, targets, 0.7, 0.3, False).tolist() == [0, -2, -1, -2, -1]
    assert ops.match_boxes(anchors, targets, 0.7, 0.3, True).tolist() == [0, -2, -1, 1, -1]  # its best, though 0.4


def test_of_nothing() -> None:
    boxes = random_boxes(5, 10, 5, 0)
    assert ops.match_boxes(boxes, torch.empty(0, 4), 0.7, 0.3, True).tolist() == [-1] * 5
    assert ops.match_boxes(torch.empty(0, 4), boxes, 0.7, 0.3, True).shape == (0,)


@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_images_are_matched_separately(allow_low_quality: bool) -> None:
    """As one image after another; images without anchors or without targets among them."""
    anchor_counts, target_counts = [40, 0, 30, 25], [6, 5, 0, 9]
    anchors, targets = random_boxes(95, 40, 20, 0), random_boxes(20, 40, 20, 1)
    thresholds = (0.5, 0.3, allow_low_quality)
    matches = ops.match_boxes(anchors, targets, *thresholds, anchor_counts, target_counts)
    first, expected = 0, []
    for a, t in zip(anchors.split(anchor_counts), targets.split(target_counts), strict=True):
        alone = ops.match_boxes_reference(a, t, *thresholds)
        expected.append(torch.where(alone >= 0, alone + first, alone))
        first += len(t)
    assert torch.equal(matches, torch.cat(expected))


def test_boxes_without_area_match_nothing() -> None:
    point = torch.tensor([[1.0, 1, 1, 1]])
    assert ops.match_boxes(point, point, 0.7, 0.3, False).tolist() == [-1]
    assert ops.match_boxes_reference(point, point, 0.7, 0.3, False).tolist() == [-1]


def test_the_more_precise_dtype_counts() -> None:
    """In float32 both targets are the anchor."""
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    targets = torch.tensor([[0.0, 0, 10, 10 + 1e-9], [0, 0, 10, 10]], dtype=torch.float64)
    assert ops.match_boxes(anchors, targets, 0.7, 0.3, False).tolist() == [1]


def test_16_bits_and_views() -> None:
    anchors, targets = random_boxes(200, 50, 30, 0), random_boxes(20, 50, 30, 1)
    half = ops.match_boxes(anchors.bfloat16(), targets.half(), 0.5, 0.3, True)
    assert torch.equal(half, ops.match_boxes(anchors.bfloat16().float(), targets.half().float(), 0.5, 0.3, True))
    transposed = ops.match_boxes(anchors.t().contiguous().t(), targets.t().contiguous().t(), 0.5, 0.3, True)
    assert torch.equal(transposed, ops.match_boxes(anchors, targets, 0.5, 0.3, True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": torch.zeros(3, 5)}, "anchors has shape"),
        ({"targets": torch.zeros(4)}, "targets has shape"),
        ({"low": 0.8}, "low is 0.8, high 0.7"),
        ({"anchors": torch.full((3, 4), torch.nan)}, "anchors: a coordinate of box 0 is not finite"),
        ({"targets": torch.tensor([[0.0, 0, 1, 1], [0, 0, torch.inf, 1]])}, "targets: a coordinate of box 1"),
        ({"anchor_counts": [2]}, "anchor_counts: 1 of the 3 anchors belong to no image"),
        ({"anchor_counts": [1, 2], "target_counts": [3, -1]}, "target_counts: 3 of the 2 targets that are left"),
        ({"anchor_counts": [4, -1], "target_counts": [2, 0]}, "anchor_counts: 4 of the 3 anchors"),
        ({"anchor_counts": [1, 2]}, "anchor_counts has 2 images, target_counts 1"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"anchors": torch.zeros(3, 4), "targets": torch.zeros(2, 4), "high": 0.7, "low": 0.3} | change
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.match_boxes(**arguments, allow_low_quality=True)


def test_registration() -> None:
    arguments = (random_boxes(40, 20, 10, 0), random_boxes(6, 20, 10, 1), [30, 10], [2, 4], 0.7, 0.3, True)
    torch.library.opcheck(torch.ops.maskrcnn.match_boxes.default, arguments)


@pytest.mark.cuda
@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_cuda_equals_cpu(allow_low_quality: bool) -> None:
    for targets in (0, 1, 300, 700):
        anchors, cells = random_boxes(5000, 300, 40, 0), random_boxes(targets, 300, 40, 1)
        ours = ops.match_boxes(anchors.cuda(), cells.cuda(), 0.7, 0.3, allow_low_quality)
        assert torch.equal(ours.cpu(), ops.match_boxes(anchors, cells, 0.7, 0.3, allow_low_quality))
