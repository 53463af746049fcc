"""NMS against torchvision and against its definition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn import ops


def random_boxes(count: int, extent: float, side: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * extent
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator, dtype=dtype) * side], dim=1)


def random_scores(count: int, seed: int, levels: int | None = None) -> Tensor:
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed + 1))
    return scores if levels is None else (scores * levels).round() / levels


# count, extent of the plane, largest side
PLANES = [(1, 10, 5), (49, 30, 20), (400, 100, 100), (1000, 1000, 40), (2000, 1e6, 5e4), (2000, 300, 1), (600, 1, 500)]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchvision(plane: tuple[int, float, float], threshold: float, dtype: torch.dtype) -> None:
    torchvision = pytest.importorskip("torchvision")
    count, extent, side = plane
    boxes = random_boxes(count, extent, side, seed=count, dtype=dtype)
    scores = random_scores(count, seed=count, levels=50).to(dtype)  # with ties
    assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1 / 3, 0.5, 0.6])
def test_overlaps_that_hit_the_threshold_equal_torchvision(threshold: float) -> None:
    """Boxes with whole-numbered corners have many overlaps of exactly 0.3, 1/3, 0.5, where the last bit decides."""
    torchvision = pytest.importorskip("torchvision")
    for seed in range(5):
        boxes = random_boxes(1500, 60, 12, seed).round()
        boxes[:, 2:] += 1
        scores = random_scores(1500, seed)
        assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_mixed_sides_equal_torchvision() -> None:
    """Cells beside whole-picture boxes and slivers: every class of sides that the kernel files boxes by."""
    torchvision = pytest.importorskip("torchvision")
    parts = [random_boxes(300, 2000, 4.0**k, seed=k) for k in range(-2, 7)]
    slivers = random_boxes(300, 2000, 1, seed=20) * torch.tensor([1.0, 1.0, 1.0, 2.0])
    boxes = torch.cat([*parts, slivers, torch.tensor([[0.0, 0, 1e9, 1e9], [5, 5, 5, 5], [9, 9, 3, 3]])])
    scores = random_scores(len(boxes), seed=3)
    for threshold in (0.01, 0.5, 0.99):
        assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


box = st.tuples(*[st.integers(-8, 8)] * 2, *[st.integers(0, 8)] * 2)


@settings(deadline=None, max_examples=150)
@given(st.lists(box, max_size=80), st.floats(-0.1, 1.1), st.integers(0, 3), st.randoms(use_true_random=False))
def test_equals_its_definition(rows: list, threshold: float, levels: int, random) -> None:
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1)  # identical, touching, without area
    scores = torch.tensor([random.randint(0, levels) for _ in rows], dtype=torch.float32)
    assert torch.equal(ops.nms(boxes, scores, threshold), ops.nms_reference(boxes, scores, threshold))


def test_of_two_cells() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    assert ops.nms(boxes, scores, 0.89).tolist() == [1, 2]
    assert ops.nms(boxes, scores, 0.9).tolist() == [1, 0, 2]  # IoU 0.9 is not above 0.9


def test_of_nothing() -> None:
    kept = ops.nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert kept.dtype == torch.int64
    assert kept.shape == (0,)


def test_boxes_of_16_bits_and_of_a_view() -> None:
    boxes, scores = random_boxes(200, 50, 20, seed=0), random_scores(200, seed=0)
    half = boxes.to(torch.bfloat16)
    assert torch.equal(ops.nms(half, scores, 0.5), ops.nms(half.float(), scores, 0.5))
    transposed = boxes.t().contiguous().t()
    assert torch.equal(ops.nms(transposed, scores, 0.5), ops.nms(boxes, scores, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_score_is_ordered_as_torchvision_orders_it(dtype: torch.dtype) -> None:
    """NaN and infinity, 0 beside -0, numbers too small to be normal, and ties among all of them."""
    torchvision = pytest.importorskip("torchvision")
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-42, -1e-42, 1.0, -1.0, 1e30], dtype=dtype)
    for seed in range(5):
        boxes = random_boxes(700, 100, 30, seed, dtype)
        scores = odd[torch.randint(0, len(odd), (700,), generator=torch.Generator().manual_seed(seed))]
        assert torch.equal(ops.nms(boxes, scores, 0.4), torchvision.ops.nms(boxes, scores, 0.4))


def test_infinite_boxes_equal_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    boxes = random_boxes(300, 60, 30, seed=0)
    generator = torch.Generator().manual_seed(0)
    boxes[torch.rand(300, 4, generator=generator) < 0.05] = torch.inf
    boxes[torch.rand(300, 4, generator=generator) < 0.05] = -torch.inf
    boxes[torch.rand(300, 4, generator=generator) < 0.05] = 3e38  # areas overflow
    scores = random_scores(300, seed=0)
    for threshold in (0.0, 0.5):
        assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.parametrize("side", [3.0, 40.0, 400.0])
def test_many_boxes_equal_torchvision(side: float) -> None:
    """From boxes that hardly touch to a heap where each overlaps thousands."""
    torchvision = pytest.importorskip("torchvision")
    boxes, scores = random_boxes(12_000, 600, side, seed=1), random_scores(12_000, seed=1)
    for threshold in (0.2, 0.7):
        assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_minus_zero_is_a_threshold_of_zero() -> None:
    boxes, scores = random_boxes(200, 30, 10, seed=0), random_scores(200, seed=0)
    assert torch.equal(ops.nms(boxes, scores, -0.0), ops.nms_reference(boxes, scores, 0.0))


def test_areas_too_small_to_be_normal_numbers_equal_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    for seed in range(20):
        boxes = random_boxes(200, 3e-22, 1e-22, seed)
        scores = random_scores(200, seed)
        for threshold in (0.1, 0.5, 0.7):
            assert torch.equal(ops.nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))


def test_groups_are_integers() -> None:
    with pytest.raises(ValueError, match=r"idxs has dtype torch\.float32"):
        ops.batched_nms(torch.zeros(2, 4), torch.zeros(2), torch.tensor([0.2, 0.7]), 0.5)


def test_scores_may_be_more_precise_than_boxes_and_a_view() -> None:
    boxes = random_boxes(100, 30, 20, seed=0)
    scores = torch.stack([1 - torch.arange(100.0, dtype=torch.float64) * 1e-12] * 2, dim=1)[:, 0]  # float32 ties
    assert torch.equal(ops.nms(boxes, scores.flip(0), 0.5), ops.nms(boxes, torch.arange(100.0), 0.5))


def test_batched_equals_one_group_after_another() -> None:
    boxes, scores = random_boxes(3000, 400, 60, seed=5), random_scores(3000, seed=5, levels=100)
    numbers = torch.tensor([-(2**62), -2, 0, 1, 5, 7, 2**40, 2**62])
    groups = numbers[torch.randint(0, 8, (3000,), generator=torch.Generator().manual_seed(1))]
    kept = torch.zeros(3000, dtype=torch.bool)
    for group in groups.unique():
        members = torch.nonzero(groups == group).squeeze(1)
        kept[members[ops.nms_reference(boxes[members], scores[members], 0.5)]] = True
    order = scores.argsort(descending=True, stable=True)
    assert torch.equal(ops.batched_nms(boxes, scores, groups, 0.5), order[kept[order]])


def test_batched_keeps_its_precision_at_large_coordinates() -> None:
    """Groups moved apart on the plane, as torchvision does it, lose the digits of boxes a million pixels away."""
    boxes = torch.tensor([[1e6, 1e6, 1e6 + 10, 1e6 + 10], [1e6 + 1, 1e6, 1e6 + 11, 1e6 + 10]])
    boxes = torch.cat([boxes, boxes])
    groups = torch.tensor([0, 0, 40, 40])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert ops.batched_nms(boxes, scores, groups, 0.8).tolist() == [0, 2]
    assert ops.batched_nms(boxes, scores, groups, 0.82).tolist() == [0, 1, 2, 3]  # IoU 9/11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, "boxes has shape"),
        ({"boxes": torch.zeros(3, 4, dtype=torch.int64)}, "boxes has dtype"),
        ({"scores": torch.zeros(2)}, "scores has shape"),
        ({"scores": torch.zeros(3, dtype=torch.int64)}, "scores has dtype torch.int64"),
        ({"iou_threshold": torch.nan}, "iou_threshold is nan"),
        ({"boxes": torch.full((3, 4), torch.nan)}, "boxes: a coordinate of box 0 is NaN"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"boxes": torch.zeros(3, 4), "scores": torch.zeros(3), "iou_threshold": 0.5} | change
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.nms(**arguments)


@pytest.mark.parametrize("idxs", [None, torch.arange(60) % 3])
def test_registration(idxs: Tensor | None) -> None:
    boxes, scores = random_boxes(60, 30, 10, seed=0), random_scores(60, seed=0)
    torch.library.opcheck(torch.ops.maskrcnn.nms.default, (boxes, scores, idxs, 0.5))


@pytest.mark.cuda
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_equals_cpu(plane: tuple[int, float, float], dtype: torch.dtype) -> None:
    count, extent, side = plane
    boxes, scores = random_boxes(count, extent, side, seed=count, dtype=dtype), random_scores(count, 0, levels=50)
    groups = torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(1))
    for threshold in (0.0, 0.3, 0.7):
        ours = ops.nms(boxes.cuda(), scores.cuda(), threshold)
        assert torch.equal(ours.cpu(), ops.nms(boxes, scores, threshold))
        ours = ops.batched_nms(boxes.cuda(), scores.cuda(), groups.cuda(), threshold)
        assert torch.equal(ours.cpu(), ops.batched_nms(boxes, scores, groups, threshold))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def beside_one_another(part: Tensor, scores: Tensor, copies: int) -> tuple[Tensor, Tensor]:
    """``copies`` of boxes with whole-numbered corners, in a row, each too far from the next to overlap it."""
    shift = torch.arange(copies)[:, None] * torch.tensor([2e5, 0.0, 2e5, 0.0])
    return (part[:, None] + shift).flatten(0, 1), scores.repeat_interleave(copies)


def kept_of_copies(kept: Tensor, scores: Tensor, copies: int) -> Tensor:
    """The result for :func:`beside_one_another` from that for one copy."""
    index = (kept[:, None] * copies + torch.arange(copies)).flatten().sort().values
    return index[scores[index].argsort(descending=True, stable=True)]


LAYOUTS = ["spread", "crowded", "one row", "outliers", "misleading sample"]


@pytest.mark.parametrize("threshold", [0.1, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_threads_equal_torchvision(layout: str, threshold: float) -> None:
    """36,000 boxes, with ties: enough that threads share them, tile by tile."""
    torchvision = pytest.importorskip("torchvision")
    part, scores = random_boxes(6000, {"crowded": 800.0, "one row": 3e4}.get(layout, 2000.0), 40, seed=5), None
    if layout == "one row":
        part[:, 1::2] /= 1000
    elif layout == "outliers":
        part[::1000, 2:] += 3000  # larger than a tile
        part[1::1000] *= 10
        part[2::1000, 0] = -torch.inf
        part[3::1000, 2:] = part[3::1000, :2]
    elif layout == "misleading sample":  # of the boxes in order of score: most others lie where it is cut
        hidden = torch.arange(6000) % 20 != 0
        part[hidden] = part[hidden] / 40 + 980
        scores = torch.linspace(1, 0, 6000)
    part = part.round()
    scores = random_scores(6000, seed=5, levels=2000) if scores is None else scores
    boxes, scores_of_all = beside_one_another(part, scores, copies=6)
    expected = kept_of_copies(torchvision.ops.nms(part, scores, threshold), scores_of_all, copies=6)
    for count in (1, 2, 3, 16):
        with threads(count):
            assert torch.equal(ops.nms(boxes, scores_of_all, threshold), expected)


def test_a_slide_of_one_class_equals_torchvision() -> None:
    """210,000 boxes: also one thread takes them tile by tile."""
    torchvision = pytest.importorskip("torchvision")
    part, scores = random_boxes(3000, 1200, 40, seed=7).round(), random_scores(3000, seed=7, levels=500)
    boxes, scores_of_all = beside_one_another(part, scores, copies=70)
    expected = kept_of_copies(torchvision.ops.nms(part, scores, 0.4), scores_of_all, copies=70)
    for count in (1, 2):
        with threads(count):
            assert torch.equal(ops.nms(boxes, scores_of_all, 0.4), expected)


def test_large_and_small_groups_equal_torchvision_in_each() -> None:
    torchvision = pytest.importorskip("torchvision")
    boxes, scores = random_boxes(60_000, 12_000, 60, seed=9).round(), random_scores(60_000, seed=9, levels=3000)
    idxs = (
        torch.randint(0, 100, (60_000,), generator=torch.Generator().manual_seed(9)).sub(60).clamp(min=0)
    )  # 61 % in 0
    with threads(2):
        found = ops.batched_nms(boxes, scores, idxs, 0.3)
    assert (scores[found].diff() <= 0).all()
    for group in range(40):
        (members,) = torch.where(idxs == group)
        with threads(1):  # not divided into tiles
            alone = ops.nms if group == 0 else torchvision.ops.nms
            kept = alone(boxes[members], scores[members], 0.3)
        assert torch.equal(found[idxs[found] == group], members[kept])
