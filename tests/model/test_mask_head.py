"""The mask branch: which mask is taken, and which targets it is trained on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn.model.mask_head import CHUNK, RECOMPUTED, MaskHead
from maskrcnn.model.roi_heads import RoIPool, SampledRoIs
from maskrcnn.structures import InstanceLabels

SIZES = [(50, 64), (64, 40)]  # both smaller than the batch, which is 64 x 64
PADDED = (64, 64)


def _head(aligned: bool = True, **options: object) -> MaskHead:
    return MaskHead(32, 3, RoIPool(14, aligned=aligned), **options)  # type: ignore[arg-type]


def _pyramid(batch: int) -> list[Tensor]:
    return [torch.randn(batch, 32, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]


def _cells(size: tuple[int, int], seed: int) -> InstanceLabels:
    """Ellipses of three classes, some cut by the picture's border; padded as a batch pads them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    planes = np.zeros((3, *size), np.int32)
    for number in range(1, 9):
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        ry, rx = rng.uniform(3, 12, 2)
        planes[rng.integers(3)][((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = number
    return InstanceLabels.from_planes(torch.from_numpy(planes), [1, 2, 3])


def _rois(labels: list[InstanceLabels], seed: int) -> tuple[Tensor, Tensor]:
    """RoIs around the cells, clipped to the picture as proposals are, and their cells' indices in all images."""
    generator = torch.Generator().manual_seed(seed)
    rois, instances, first = [], [], 0
    for image, (label, (height, width)) in enumerate(zip(labels, SIZES, strict=True)):
        boxes = label.boxes + torch.randn(len(label), 4, generator=generator) * 2
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        rois.append(torch.cat([torch.full((len(label), 1), float(image)), boxes.clamp(min=0).minimum(limits)], dim=1))
        instances.append(torch.arange(first, first + len(label)))
        first += len(label)
    order = torch.randperm(first, generator=generator)
    return torch.cat(rois)[order], torch.cat(instances)[order]


@torch.no_grad()
@pytest.mark.parametrize("group_norm", [False, True])
def test_many_rois_in_chunks(group_norm: bool) -> None:
    """In inference: each RoI has the mask that it has alone, and no more than a chunk of them are in memory."""
    head = _head(group_norm=group_norm)
    features = _pyramid(2)
    count = 2 * CHUNK + 3
    generator = torch.Generator().manual_seed(0)
    corners = 40 * torch.rand(count, 2, generator=generator)
    sides = 2 + 20 * torch.rand(count, 2, generator=generator)
    images = torch.randint(2, (count, 1), generator=generator).float()
    rois = torch.cat([images, corners, corners + sides], dim=1)
    classes = torch.randint(1, 4, (count,), generator=generator)
    logits = head(features, rois, classes, PADDED)
    alone = [head(features, rois[[i]], classes[[i]], PADDED) for i in range(0, count, 37)]
    torch.testing.assert_close(logits[::37], torch.cat(alone), atol=1e-5, rtol=1e-4)
    sizes = []
    head.conv5_mask.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    head(features, rois, classes, PADDED)
    assert sizes == [CHUNK, CHUNK, 3]


def test_what_is_computed_again_has_the_same_gradients() -> None:
    """In training, the largest maps are not kept, but computed again, some RoIs at a time."""
    head, features = _head(group_norm=True), _pyramid(2)
    corners = 40 * torch.rand(RECOMPUTED + 3, 2)
    rois = torch.cat([torch.zeros(len(corners), 1), corners, corners + 20], dim=1)
    classes = torch.arange(len(rois)) % 3 + 1
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    results = []
    for run in (head, lambda *arguments: head._predict(head.convs(head.pool(*arguments[:2], PADDED)), arguments[2])):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = run(features, rois, classes, PADDED)
        gradients = torch.autograd.grad(logits.square().sum(), list(head.parameters()))
        results.append((logits.detach(), *gradients))
        assert any(numel == len(rois) * 32 * 28 * 28 for numel in kept) == (run is not head)
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("group_norm", [False, True])
def test_forward_takes_the_mask_of_the_class(group_norm: bool) -> None:
    head = _head(group_norm=group_norm)
    features = _pyramid(2)
    rois = torch.tensor([[0.0, 1, 1, 20, 20], [1.0, 3, 3, 39, 49], [0.0, 1, 1, 20, 20]])
    classes = torch.tensor([1, 3, 2])
    logits = head(features, rois, classes, PADDED)
    assert logits.shape == (3, 28, 28)
    assert logits.dtype == torch.float32
    with torch.no_grad():
        head.mask_fcn_logits.weight[[0, 1, 3]] = 0  # only class 2 is left
        head.mask_fcn_logits.bias.zero_()
    changed = head(features, rois, classes, PADDED)
    assert torch.equal(changed[2], logits[2])
    assert changed[:2].abs().max() == 0


def test_no_rois() -> None:
    assert _head()(_pyramid(1), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), PADDED).shape == (0, 28, 28)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_targets_as_torchvision(seed: int, aligned: bool) -> None:
    """RoIAlign on one full-size mask a cell, each in its picture's true size, as torchvision cuts them."""
    vision_ops = pytest.importorskip("torchvision.ops")
    labels = [_cells(size, seed + 10 * i) for i, size in enumerate(SIZES)]
    rois, instances = _rois(labels, seed)
    padded = [label.padded(*PADDED) for label in labels]
    before = [label.planes.clone() for label in padded]
    targets = _head(aligned).mask_targets(rois, instances, padded, PADDED, SIZES)
    assert targets.shape == (len(rois), 28, 28)
    for target, roi, instance in zip(targets, rois, instances.tolist(), strict=True):
        image = int(roi[0])
        label = labels[image]
        mask = label.mask(instance - image * len(labels[0]))[None, None].float()
        expected = vision_ops.roi_align(mask, [roi[None, 1:]], 28, aligned=aligned)[0, 0]
        assert torch.allclose(target, expected, atol=1e-5)
    assert any(bool(((t > 0.01) & (t < 0.99)).any()) for t in targets)  # soft
    for label, planes in zip(padded, before, strict=True):
        assert torch.equal(label.planes, planes)  # the batch itself is not touched


@pytest.mark.parametrize("aligned", [False, True])
def test_a_cell_cut_by_the_border_goes_on_to_it(aligned: bool) -> None:
    labels = InstanceLabels.from_planes(torch.ones(1, 20, 30, dtype=torch.int32), [1]).padded(32, 32)
    rois = torch.tensor([[0.0, 0, 0, 30, 20], [0.0, 25, 15, 30, 20]])
    targets = _head(aligned).mask_targets(rois, torch.tensor([0, 0]), [labels], (32, 32), [(20, 30)])
    assert torch.allclose(targets, torch.ones_like(targets), atol=1e-6)


def test_binary_targets() -> None:
    labels = [_cells(size, 5 + i) for i, size in enumerate(SIZES)]
    rois, instances = _rois(labels, 5)
    padded = [label.padded(*PADDED) for label in labels]
    soft = _head().mask_targets(rois, instances, padded, PADDED, SIZES)
    hard = _head(binary_targets=True).mask_targets(rois, instances, padded, PADDED, SIZES)
    assert torch.equal(hard, (soft >= 0.5).float())


def _sampled(rois: Tensor, classes: Tensor, instances: Tensor) -> SampledRoIs:
    positive = torch.nonzero(classes > 0).squeeze(1)
    return SampledRoIs(rois, classes, positive, instances, torch.zeros(len(positive), 4))


def test_loss_is_over_positives_alone() -> None:
    labels = InstanceLabels.from_planes(torch.ones(1, 64, 64, dtype=torch.int32), [2])
    features = _pyramid(1)
    cell = torch.tensor([[0.0, 4, 4, 30, 30]])
    background = torch.tensor([[0.0, 40, 40, 60, 60]])
    head = _head()
    with torch.no_grad():
        head.mask_fcn_logits.weight.zero_()
        head.mask_fcn_logits.bias.copy_(torch.tensor([9.0, 9.0, 1.0, 9.0]))
    sampled = _sampled(torch.cat([background, cell]), torch.tensor([0, 2]), torch.tensor([0]))
    loss = head.losses(features, sampled, [labels], PADDED, [PADDED])["loss_mask"]
    assert loss.item() == pytest.approx(
        math.log(1 + math.exp(-1)), rel=1e-5
    )  # -log sigmoid(1), whatever the others say


@pytest.mark.parametrize("kind", ["bce", "dice", "bce+dice", "tversky"])
def test_no_positives(kind: str) -> None:
    head = _head(loss=kind, group_norm=True)
    sampled = _sampled(torch.tensor([[0.0, 4, 4, 30, 30]]), torch.tensor([0]), torch.zeros(0, dtype=torch.int64))
    loss = head.losses(_pyramid(1), sampled, [InstanceLabels.empty(64, 64)], PADDED, [PADDED])["loss_mask"]
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_initial_loss_is_log_2() -> None:
    """Random weights must not begin with confident masks: log 2 is the cross-entropy of probability one half."""
    torch.manual_seed(0)
    labels = [_cells(size, i) for i, size in enumerate(SIZES)]
    rois, instances = _rois(labels, 0)
    classes = torch.cat([label.classes for label in labels])[instances]
    head = MaskHead(256, 3, RoIPool(14), group_norm=True)
    features = [torch.randn(2, 256, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    padded = [label.padded(*PADDED) for label in labels]
    loss = head.losses(features, _sampled(rois, classes, instances), padded, PADDED, SIZES)["loss_mask"]
    assert loss.item() == pytest.approx(math.log(2), abs=0.05)
