"""Mask targets from label planes against RoIAlign of one-hot masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn import ops


def random_labels(planes: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Blocks of ids with gaps between the numbers, int32 [P, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 4, (planes, height // 4 + 1, width // 4 + 1), generator=generator) * 1000
    fine = coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    return fine[:, :height, :width].to(torch.int32).contiguous()


def random_arguments(count: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) * 1.2 - 4
    rois = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) ** 2 * 60], dim=1)
    plane = torch.randint(0, 3, (count,), generator=generator)
    ids = torch.randint(1, 4, (count,), generator=generator) * 1000
    return random_labels(3, height, width, seed), rois, plane, ids


@pytest.mark.parametrize("size", [28, 14, 5])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_torchvision_on_masks(size: int, binary: bool, aligned: bool) -> None:
    torchvision = pytest.importorskip("torchvision")
    planes, rois, plane, ids = random_arguments(60, 70, 50)
    masks = (planes[plane] == ids[:, None, None]).float()[:, None]
    boxes = torch.cat([torch.arange(60.0)[:, None], rois], dim=1)
    expected = torchvision.ops.roi_align(masks, boxes, size, aligned=aligned)[:, 0]
    ours = ops.crop_labels(planes, rois, plane, ids, size, binary, aligned)
    if not binary:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        return
    clear = (expected - 0.5).abs() > 1e-5  # on the threshold the last bit decides
    assert clear.float().mean() > 0.95
    assert torch.equal(ours[clear], (expected >= 0.5).float()[clear])


coordinate = st.floats(-(2.0**99), 2.0**99, width=32) | st.floats(-10, 40, width=32)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(*[coordinate] * 4), max_size=6), st.booleans())
def test_shares_lie_between_0_and_1_whatever_the_roi(rows: list, aligned: bool) -> None:
    rois = torch.tensor(rows).reshape(-1, 4)
    count = len(rows)
    planes = random_labels(1, 30, 30)
    zero, ids = torch.zeros(count, dtype=torch.int64), torch.full((count,), 1000)
    shares = ops.crop_labels(planes, rois, zero, ids, 4, aligned=aligned)
    assert shares.shape == (count, 4, 4)
    assert (shares >= 0).all()
    assert (shares <= 1.001).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans())
def test_equals_its_definition(seed: int, size: int, aligned: bool) -> None:
    planes, rois, plane, ids = random_arguments(8, 30, 41, seed)
    ours = ops.crop_labels(planes, rois, plane, ids, size, aligned=aligned)
    expected = ops.crop_labels_reference(planes, rois.double(), plane, ids, size, aligned=aligned)
    # a RoI whose side is a multiple of the bins may have one sampling point more in float64
    agree = torch.isclose(ours.double(), expected, rtol=1e-4, atol=1e-5)
    assert agree.float().mean() > 0.98


def test_by_hand() -> None:
    """A cell of the left half of a 4x4 RoI: the bins are the pixels. Not aligned, a bin's sample lies on a corner of
    pixels, so that a bin at the cell's edge sees half of it."""
    plane = torch.zeros(1, 6, 8, dtype=torch.int32)
    plane[0, :, :4] = 7
    zero = torch.zeros(1, dtype=torch.int64)
    seven = torch.full((1,), 7)
    roi = torch.tensor([[2.0, 1, 6, 5]])
    assert ops.crop_labels(plane, roi, zero, seven, 4)[0].tolist() == [[1, 1, 0, 0]] * 4
    assert ops.crop_labels(plane, roi + 0.25, zero, seven, 4)[0].tolist() == [[1, 0.75, 0, 0]] * 4
    assert ops.crop_labels(plane, roi, zero, seven, 4, aligned=False)[0, 0].tolist() == [1.0, 0.5, 0.0, 0.0]
    assert ops.crop_labels(plane, roi, zero, seven, 4, True, aligned=False)[0, 0].tolist() == [1, 1, 0, 0]
    for aligned in (True, False):
        assert not ops.crop_labels(plane, roi, zero, seven + 1, 4, aligned=aligned).any()


def test_a_roi_without_area() -> None:
    """It has no bins. Not aligned, a RoI is at least one pixel wide and high."""
    planes, zero = torch.full((1, 8, 8), 5, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
    rois = torch.tensor([[3.0, 3, 3, 6], [6, 6, 2, 7], [3, 3, 3, 3]])
    assert not ops.crop_labels(planes, rois, zero, zero + 5, 4).any()
    assert ops.crop_labels(planes, rois, zero, zero + 5, 4, aligned=False).all()


@pytest.mark.parametrize("aligned", [False, True])
def test_outside_of_the_picture_there_is_nothing(aligned: bool) -> None:
    planes, zero = torch.full((1, 8, 8), 5, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    rois = torch.tensor([[20.0, 2, 28, 6], [-30, -30, -9, -5]])
    assert not ops.crop_labels(planes, rois, zero, zero + 5, 4, aligned=aligned).any()


def test_an_id_beyond_32_bits_belongs_to_nobody() -> None:
    planes, zero = torch.full((1, 8, 8), 5, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    assert not ops.crop_labels(planes, torch.tensor([[0.0, 0, 8, 8]]), zero, zero + 2**32 + 5, 4).any()


def test_views() -> None:
    planes, rois, plane, ids = random_arguments(20, 40, 30)
    wide = torch.stack([planes, planes], dim=3)[..., 0]
    ours = ops.crop_labels(wide, rois.t().contiguous().t(), plane, ids.repeat_interleave(2)[::2], 7)
    assert torch.equal(ours, ops.crop_labels(planes, rois, plane, ids, 7))


def test_of_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert ops.crop_labels(torch.zeros(0, 5, 5, dtype=torch.int32), torch.empty(0, 4), none, none, 28).shape == (
        0,
        28,
        28,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planes": torch.zeros(1, 5, 5)}, "planes is"),
        ({"rois": torch.zeros(3, 4)}, "plane has shape"),
        ({"rois": torch.full((2, 4), torch.nan)}, "roi 0 has a coordinate that is not finite"),
        ({"plane": torch.tensor([0, 1])}, "1 of roi 1 is not one of the 1 planes"),
        ({"ids": torch.zeros(2)}, "ids has dtype"),
        ({"planes": torch.zeros(1, 0, 5, dtype=torch.int32)}, "planes: 0 x 5"),
        ({"size": 0}, "size: 0 x 0"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    index = torch.zeros(2, dtype=torch.int64)
    arguments = {
        "planes": torch.zeros(1, 5, 5, dtype=torch.int32),
        "rois": torch.zeros(2, 4),
        "plane": index,
        "ids": index + 1,
    }
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.crop_labels(**{"size": 7, **arguments, **change})


def test_registration() -> None:
    torch.library.opcheck(torch.ops.maskrcnn.crop_labels.default, (*random_arguments(6, 20, 20), 7, False, True))


@pytest.mark.cuda
def test_cuda_equals_cpu() -> None:
    arguments = random_arguments(200, 90, 70)
    for size, binary, aligned in ((28, False, True), (14, False, False), (28, True, True)):
        ours = ops.crop_labels(*(a.cuda() for a in arguments), size, binary, aligned).cpu()
        expected = ops.crop_labels(*arguments, size, binary, aligned)
        assert torch.isclose(ours, expected, rtol=1e-4, atol=1e-5).float().mean() > 0.999
