"""Run lengths of predicted masks against pasted masks encoded by pycocotools."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import Tensor

from maskrcnn import ops


def smooth_masks(count: int, seed: int, size: int = 28) -> Tensor:
    """Blobs with some holes, as networks predict them: float32 [K, size, size] in 0..1."""
    noise = torch.randn(count, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(size, size), mode="bicubic").sigmoid()[:, 0].contiguous()


def boxes_over(height: int, width: int, count: int, seed: int) -> Tensor:
    """Boxes that have at least a pixel in the picture; some reach out of it, some are smaller than a pixel."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 2, generator=generator) * torch.tensor([width - 2.0, height - 2.0]) + 1
    half = torch.rand(count, 2, generator=generator) ** 3 * 60
    return torch.cat([center - half, center + half], dim=1)


def decode(rle: dict) -> np.ndarray:
    return coco_mask.decode(rle)


@pytest.mark.parametrize(("height", "width"), [(200, 150), (33, 86), (64, 64)])
def test_equals_torchvision_pasted_and_encoded(height: int, width: int) -> None:
    roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    masks, boxes = smooth_masks(300, seed=height), boxes_over(height, width, 300, seed=1)
    pasted = roi_heads.paste_masks_in_image(masks[:, None], boxes, (height, width))[:, 0] > 0.5
    expected = [coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in pasted]
    ours = ops.masks_to_rle(masks, boxes, (height, width), aligned=False)
    same = sum(a == b for a, b in zip(ours, expected, strict=True))
    assert same >= 299, f"{same} of 300 equal"
    for a, b in zip(ours, expected, strict=True):
        assert (decode(a) != decode(b)).sum() <= 1  # a pixel on the threshold


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 1000),
    st.lists(st.tuples(*[st.floats(-60, 100, width=32)] * 2, *[st.floats(-2, 90, width=32)] * 2), max_size=5),
    st.sampled_from([0.3, 0.5, 0.9]),
    st.booleans(),
)
def test_equals_its_definition(seed: int, rows: list, threshold: float, aligned: bool) -> None:
    """Boxes partly or wholly outside the picture, upside down or without area."""
    corners = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], dim=1)
    masks = smooth_masks(len(rows), seed)
    ours = ops.masks_to_rle(masks, boxes, (40, 50), threshold, aligned)
    expected = ops.masks_to_rle_reference(masks, boxes, (40, 50), threshold, aligned)
    assert len(ours) == len(rows)
    for a, b in zip(ours, expected, strict=True):
        assert a["size"] == [40, 50]
        assert (decode(a) != decode(b)).sum() <= 1


@pytest.mark.parametrize(("height", "width"), [(200, 150), (33, 86), (64, 64)])
def test_aligned_equals_its_definition_in_float64(height: int, width: int) -> None:
    """Byte for byte: rounding decides no pixel of random masks in random boxes."""
    masks, boxes = smooth_masks(300, seed=height), boxes_over(height, width, 300, seed=1)
    boxes[:40] = boxes[:40].round() + torch.tensor([0.0, 0, 1, 1])
    assert ops.masks_to_rle(masks, boxes, (height, width)) == ops.masks_to_rle_reference(masks, boxes, (height, width))


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("side", [7, 14, 21, 28, 40, 56])
def test_aligned_values_on_the_threshold(side: int, threshold: float) -> None:
    """Masks of 0 and 1 in boxes of whole and half pixels: whole outlines have exactly the threshold's value."""
    generator = torch.Generator().manual_seed(side)
    masks = torch.rand(100, 14, 14, generator=generator).round()
    corner = torch.randint(-8, 140, (100, 2), generator=generator) / 2
    boxes = torch.cat([corner, corner + torch.tensor([side, side + 0.5])], dim=1)
    ours = ops.masks_to_rle(masks, boxes, (90, 70), threshold)
    assert ours == ops.masks_to_rle_reference(masks, boxes, (90, 70), threshold)


def test_aligned_equals_sampling_as_detectron2() -> None:
    """detectron2 pastes by grid_sample over the whole picture (modeling/roi_heads/mask_head.py, _do_paste_mask)."""
    height, width = 80, 60
    masks, boxes = smooth_masks(100, seed=3), boxes_over(height, width, 100, seed=4)
    x, y = torch.arange(width).double() + 0.5, torch.arange(height).double() + 0.5
    for mask, box, rle in zip(masks, boxes, ops.masks_to_rle(masks, boxes, (height, width)), strict=True):
        x1, y1, x2, y2 = box.double()
        across, down = (x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack([across.expand(height, width), down[:, None].expand(height, width)], dim=2)
        pasted = F.grid_sample(mask.double()[None, None], grid[None], align_corners=False)[0, 0]
        different = decode(rle) != (pasted > 0.5).numpy()
        assert not (different & ((pasted - 0.5).abs() > 1e-6).numpy()).any()


def test_aligned_by_hand() -> None:
    """A mask of ones ends half-way between the centre of its last entry and that of the zero beside it: on the box."""
    ones = torch.ones(5, 4, 4)
    boxes = torch.tensor([[2.0, 1, 6, 5], [2.25, 1, 6.25, 5], [2.75, 1, 6.75, 5], [3.2, 2, 3.4, 5], [3.4, 2, 3.6, 5]])
    columns = [np.flatnonzero(decode(rle).any(axis=0)).tolist() for rle in ops.masks_to_rle(ones, boxes, (8, 9))]
    assert columns == [[2, 3, 4, 5], [2, 3, 4, 5], [3, 4, 5, 6], [], [3]]
    rows = [np.flatnonzero(decode(rle).any(axis=1)).tolist() for rle in ops.masks_to_rle(ones[:1], boxes[:1], (8, 9))]
    assert rows == [[1, 2, 3, 4]]
    pixels = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))  # entries that are pixels stay as they are
    full = decode(ops.masks_to_rle(pixels, boxes[:1], (8, 9))[0])
    assert np.array_equal(full[1:5, 2:6], (pixels[0] > 0.5).numpy())


@pytest.mark.parametrize("count", [0, 5, 6, 7])
def test_more_masks_than_are_encoded_together(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, boxes = smooth_masks(count, seed=0).half(), boxes_over(40, 50, count, seed=1)
    together = ops.masks_to_rle(masks, boxes, (40, 50))
    monkeypatch.setattr(importlib.import_module("maskrcnn.ops.masks_to_rle"), "CHUNK", 3)
    assert ops.masks_to_rle(masks, boxes, (40, 50)) == together
    assert len(together) == count


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("kind", ["binary", "random"])
def test_values_on_the_threshold_equal_torchvision(kind: str, threshold: float) -> None:
    """Masks of 0 and 1, and a threshold of 0: whole outlines have exactly the threshold's value."""
    roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    masks, boxes = torch.rand(300, 14, 14, generator=torch.Generator().manual_seed(0)), boxes_over(90, 70, 300, seed=1)
    masks = masks.round() if kind == "binary" else masks
    pasted = roi_heads.paste_masks_in_image(masks[:, None], boxes, (90, 70))[:, 0] > threshold
    ours = ops.masks_to_rle(masks, boxes, (90, 70), threshold, aligned=False)
    different = [int((decode(rle) != mask.numpy()).sum()) for rle, mask in zip(ours, pasted, strict=True)]
    assert sum(count > 0 for count in different) <= 3
    assert max(different) <= 2


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("aligned", [False, True])
def test_empty_and_full_masks(value: float, aligned: bool) -> None:
    boxes = torch.tensor([[-30.0, -30, 90, 90], [5, 5, 9, 9], [200, 200, 300, 300]])
    rles = ops.masks_to_rle(torch.full((3, 28, 28), value), boxes, (20, 30), aligned=aligned)
    areas = [int(decode(rle).sum()) for rle in rles]
    assert areas[0] == value * 600
    assert (areas[1] >= 16) == bool(value)
    assert areas[2] == 0


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("far", [1e7, 3.4e38])
def test_a_box_far_larger_than_the_picture_costs_the_picture(far: float, aligned: bool) -> None:
    boxes = torch.tensor([[-far, -far, far, far]])
    mask = decode(ops.masks_to_rle(torch.ones(1, 28, 28), boxes, (50, 60), aligned=aligned)[0])
    assert mask.all() or (far > 1e30 and not aligned)  # whose corners' distance is beyond float32


@pytest.mark.parametrize("aligned", [False, True])
def test_a_box_upside_down_has_no_pixels(aligned: bool) -> None:
    boxes = torch.tensor([[5.0, 1, 2, 4], [1, 5, 4, 2]])
    for encode in (ops.masks_to_rle, ops.masks_to_rle_reference):
        rles = encode(torch.ones(2, 3, 3), boxes, (8, 8), aligned=aligned)
        assert not any(decode(rle).any() for rle in rles)


def test_aligned_boxes_without_area_or_outside_have_no_pixels() -> None:
    boxes = torch.tensor([[2.5, 1, 2.5, 4], [3, 3, 3, 3], [9, 2, 12, 5], [-4, -4, -1, -1], [2, 1, 2 + 1e-30, 4]])
    for encode in (ops.masks_to_rle, ops.masks_to_rle_reference):
        assert not any(decode(rle).any() for rle in encode(torch.ones(5, 3, 3), boxes, (8, 8), 0.0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_boxes_that_are_not_finite_are_refused(value: float) -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, value]])
    for aligned in (False, True):
        with pytest.raises(RuntimeError, match="boxes: a coordinate of box 1 is not finite"):
            ops.masks_to_rle(torch.ones(2, 3, 3), boxes, (8, 8), aligned=aligned)


def test_a_threshold_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold is -0\.1"):
        ops.masks_to_rle(torch.ones(1, 3, 3), torch.ones(1, 4), (8, 8), -0.1)


def test_of_nothing() -> None:
    assert ops.masks_to_rle(torch.empty(0, 28, 28), torch.empty(0, 4), (10, 10)) == []


@pytest.mark.parametrize(
    ("masks", "boxes", "message"),
    [
        (torch.zeros(2, 28, 27), torch.zeros(2, 4), "masks has shape"),
        (torch.zeros(3, 28, 28), torch.zeros(2, 4), "masks has shape"),
        (torch.zeros(2, 28, 28, dtype=torch.int64), torch.zeros(2, 4), "masks has dtype"),
        (torch.zeros(1, 28, 28), torch.full((1, 4), torch.nan), "boxes: a coordinate of box 0 is not finite"),
    ],
)
def test_bad_arguments_are_named(masks: Tensor, boxes: Tensor, message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.masks_to_rle(masks, boxes, (10, 10))


def test_texts_come_from_runs_alone() -> None:
    """pycocotools reads the texts back as the runs; runs of over 2^31 pixels too."""
    runs, ends = torch.tensor([0, 5, 95, 100, 3, 2**40, 7, 1, 2]), torch.tensor([3, 4, 4, 9])
    texts, stops = torch.ops.maskrcnn.encode_runs(runs, ends)
    pieces = [bytes(piece.tolist()) for piece in texts.tensor_split(stops[:-1])]
    assert pieces[0] == coco_mask.frPyObjects({"size": [10, 10], "counts": [0, 5, 95]}, 10, 10)["counts"]
    assert pieces[1] == coco_mask.frPyObjects({"size": [10, 10], "counts": [100]}, 10, 10)["counts"]
    assert pieces[2] == b""
    with pytest.raises(RuntimeError, match="ends: 10 after 4 of 9 runs"):
        torch.ops.maskrcnn.encode_runs(runs, torch.tensor([4, 10]))


def test_16_bits_and_views() -> None:
    masks, boxes = smooth_masks(20, seed=0), boxes_over(60, 50, 20, seed=0)
    expected = ops.masks_to_rle(masks, boxes, (60, 50))
    wide = torch.stack([masks, masks], dim=3)[..., 0]
    assert ops.masks_to_rle(wide, boxes.t().contiguous().t(), (60, 50)) == expected
    half = masks.bfloat16()
    assert ops.masks_to_rle(half, boxes, (60, 50)) == ops.masks_to_rle(half.float(), boxes, (60, 50))


def test_registration() -> None:
    masks, boxes = smooth_masks(6, seed=0), boxes_over(30, 20, 6, seed=0)
    torch.library.opcheck(torch.ops.maskrcnn.mask_runs.default, (masks, boxes, 30, 20, 0.5, True))
    torch.library.opcheck(
        torch.ops.maskrcnn.encode_runs.default, torch.ops.maskrcnn.mask_runs(masks, boxes, 30, 20, 0.5, True)
    )


@pytest.mark.cuda
@pytest.mark.parametrize(("height", "width"), [(200, 150), (33, 86), (1, 1), (3000, 40)])
@pytest.mark.parametrize("aligned", [False, True])
def test_cuda_equals_cpu(height: int, width: int, aligned: bool) -> None:
    masks, boxes = smooth_masks(300, seed=height), boxes_over(height, width, 300, seed=1)
    boxes[:5] = torch.tensor([-1e7, -1e7, 1e7, 1e7])
    masks[:3] = 1
    ours = ops.masks_to_rle(masks.cuda(), boxes.cuda(), (height, width), aligned=aligned)
    assert ours == ops.masks_to_rle(masks, boxes, (height, width), aligned=aligned)
