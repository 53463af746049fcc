"""What every op must hold on every device: empty inputs, the current stream, a device that is not the current one.

Each op is called with arguments from the CPU that are moved to a device; its results there must be the CPU's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskrcnn import ops
from tests.conftest import DEVICES
from tests.ops.test_crop_labels import random_arguments
from tests.ops.test_masks_to_rle import boxes_over, smooth_masks
from tests.ops.test_nms import random_boxes, random_scores
from tests.ops.test_roi_align import random_map, random_rois

Call = tuple[Callable[..., object], tuple[Tensor, ...]]


def _nms(boxes: Tensor, scores: Tensor) -> Tensor:
    return ops.nms(boxes, scores, 0.4)


def _batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    return ops.batched_nms(boxes, scores, groups, 0.4)


def _roi_align(features: Tensor, rois: Tensor) -> Tensor:
    return ops.roi_align(features, rois, 7, 0.5, 2)


def _roi_align_gradient(features: Tensor, rois: Tensor) -> Tensor:
    features = features.detach().requires_grad_()
    ops.roi_align(features, rois, 7, 0.5, 2).square().sum().backward()
    assert features.grad is not None
    return features.grad


def _match_boxes(anchors: Tensor, targets: Tensor) -> Tensor:
    return ops.match_boxes(anchors, targets, 0.5, 0.3, True)


def _crop_labels(planes: Tensor, rois: Tensor, plane: Tensor, ids: Tensor) -> Tensor:
    return ops.crop_labels(planes, rois, plane, ids, 14)


def _masks_to_rle(masks: Tensor, boxes: Tensor) -> list:
    return ops.masks_to_rle(masks, boxes, (60, 50))


def _group_norm(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.group_norm(maps, 8, weight, bias, relu=True)


def _group_norm_gradient(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    leaves = [tensor.detach().requires_grad_() for tensor in (maps, weight, bias)]
    ops.group_norm(leaves[0], 8, leaves[1], leaves[2]).square().sum().backward()
    return torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])


def calls(count: int) -> dict[str, Call]:
    """Every op, with arguments for ``count`` boxes."""
    boxes, scores = random_boxes(count, 100, 30, 0), random_scores(count, 0)
    rois, features = random_rois(count, 2, 40), random_map(2, 16, 20, 20)
    norm = random_map(count, 16, 14, 14), torch.linspace(-2, 2, 16), torch.linspace(0, 1, 16)
    return {
        "nms": (_nms, (boxes, scores)),
        "batched_nms": (_batched_nms, (boxes, scores, torch.arange(count) % 7)),
        "roi_align": (_roi_align, (features, rois)),
        "roi_align_gradient": (_roi_align_gradient, (features, rois)),
        "group_norm": (_group_norm, norm),
        "group_norm_gradient": (_group_norm_gradient, norm),
        "match_boxes": (_match_boxes, (boxes, random_boxes(count // 3, 100, 30, 1))),
        "crop_labels": (_crop_labels, random_arguments(count, 50, 60)),
        "masks_to_rle": (_masks_to_rle, (smooth_masks(count, seed=0, size=28), boxes_over(60, 50, count, seed=1))),
    }


NAMES = list(calls(0))


def assert_same(ours: object, expected: object) -> None:
    if not isinstance(ours, Tensor):
        assert ours == expected
    elif ours.is_floating_point():
        # a side that is a multiple of its bins to the last bit may have one sampling point more or less
        assert torch.isclose(ours.cpu(), expected, rtol=1e-4, atol=1e-4).float().mean() > 0.999 or ours.numel() == 0
    else:
        assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, 700])
def test_the_result_does_not_depend_on_the_device(name: str, count: int, device: str) -> None:
    run, arguments = calls(count)[name]
    ours = run(*(a.to(device) for a in arguments))
    if isinstance(ours, Tensor):
        assert ours.device.type == device
    assert_same(ours, run(*arguments))


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMES)
def test_on_a_side_stream(name: str) -> None:
    """The arguments are made on the side stream, late: a kernel on another one would read what is not there yet."""
    run, arguments = calls(700)[name]
    pinned = [a.pin_memory() for a in arguments]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        ours = run(*(a.to("cuda", non_blocking=True) for a in pinned))
        assert torch.cuda.current_stream() == stream
    stream.synchronize()
    assert_same(ours, run(*arguments))


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMES)
def test_on_a_device_that_is_not_the_current_one(name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    run, arguments = calls(700)[name]
    with torch.cuda.device(0):
        ours = run(*(a.to("cuda:1") for a in arguments))
        assert torch.cuda.current_device() == 0
    if isinstance(ours, Tensor):
        assert ours.device == torch.device("cuda:1")
    assert_same(ours, run(*arguments))


@pytest.mark.parametrize("device", DEVICES)
def test_nms_of_100_000_boxes(device: str) -> None:
    """200 copies of the same 500 boxes, far apart: in each, the same ones survive."""
    boxes, scores = random_boxes(500, 200, 40, 0).round(), random_scores(500, 0)
    corner = torch.stack(torch.meshgrid(torch.arange(20), torch.arange(10), indexing="ij"), dim=2).reshape(-1, 1, 2)
    many = (boxes + corner.repeat(1, 1, 2) * 1000).reshape(-1, 4)
    survives = torch.zeros(500, dtype=torch.bool)
    survives[ops.nms_reference(boxes, scores, 0.3)] = True
    order = scores.repeat(200).argsort(descending=True, stable=True)
    expected = order[survives.repeat(200)[order]]
    copies = torch.arange(200).repeat_interleave(500)
    for groups in (torch.zeros(100_000, dtype=torch.int64), copies, copies % 3):
        kept = ops.batched_nms(many.to(device), scores.repeat(200).to(device), groups.to(device), 0.3)
        assert torch.equal(kept.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_matching_of_100_000_anchors(device: str) -> None:
    """Each anchor is a target moved by a pixel, or lies where no target is."""
    target = torch.arange(2000)
    targets = torch.stack([target % 50, target // 50, target % 50, target // 50], dim=1) * 100.0
    targets = targets + torch.tensor([0.0, 0, 20, 20])
    which = torch.randint(0, 2000, (100_000,), generator=torch.Generator().manual_seed(0))
    anchors = targets[which] + 1
    anchors[::3] += 50
    expected = which.clone()
    expected[::3] = -1
    ours = ops.match_boxes(anchors.to(device), targets.to(device), 0.7, 0.3, False)
    assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pyramid_of_channels_last_maps(device: str, dtype: torch.dtype) -> None:
    """As the network has it; the maps are rounded once, at the end, from the float32 reference's sums."""
    scales = [1 / 4, 1 / 8, 1 / 16]
    maps = [random_map(2, 64, 256 // s, 192 // s, seed=s).to(dtype) for s in (4, 8, 16)]
    rois = random_rois(300, 2, 250)
    inputs = [m.to(device).contiguous(memory_format=torch.channels_last).requires_grad_() for m in maps]
    wide = [m.double().requires_grad_() for m in maps]
    ours = ops.multilevel_roi_align(inputs, rois.to(device), 7, scales)
    expected = ops.multilevel_roi_align(wide, rois.double(), 7, scales)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    last_bit = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(ours.cpu().double(), expected, rtol=last_bit, atol=1e-4)
    upstream = random_map(*ours.shape, seed=1).to(dtype)
    ours.backward(upstream.to(device))
    expected.backward(upstream.double())
    for a, b in zip(inputs, wide, strict=True):
        assert a.grad.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(a.grad.cpu().double(), b.grad, rtol=last_bit, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_gradients(device: str) -> None:
    """Bit for bit the same each time, though thousands of RoIs overlap."""
    features, rois = random_map(2, 32, 40, 40).to(device), random_rois(2000, 2, 80).to(device)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (_roi_align_gradient(features, rois) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert torch.equal(other, first)
