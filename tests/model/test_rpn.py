"""The region proposal network, step by step on small hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.model.anchors import AnchorGenerator
from maskrcnn.model.rpn import RegionProposalNetwork, RPNHead
from maskrcnn.structures import InstanceLabels


def _rpn(sizes: tuple[tuple[float, ...], ...] = ((8,), (16,)), **options: object) -> RegionProposalNetwork:
    anchors = AnchorGenerator(sizes, (1.0,))
    return RegionProposalNetwork(RPNHead(8, anchors.per_position), anchors, **options)  # type: ignore[arg-type]


def _labels(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (32, 32)) -> InstanceLabels:
    planes = torch.zeros(1, *size, dtype=torch.int32)
    for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        planes[0, y0:y1, x0:x1] = number
    return InstanceLabels.from_planes(planes, [1])


def test_head_orders_its_outputs_as_the_anchors() -> None:
    """Channel k of position (y, x) is anchor (y, x, k); a level with fewer anchors uses the first channels."""
    head = RPNHead(8, [3, 2])
    features = [torch.randn(2, 8, 4, 5), torch.randn(2, 8, 2, 3)]
    objectness, deltas = head(features)
    assert [tuple(o.shape) for o in objectness] == [(2, 4 * 5 * 3), (2, 2 * 3 * 2)]
    assert [tuple(d.shape) for d in deltas] == [(2, 4 * 5 * 3, 4), (2, 2 * 3 * 2, 4)]
    for level, count in ((0, 3), (1, 2)):
        hidden = head.conv(features[level])
        logits, offsets = head.cls_logits(hidden), head.bbox_pred(hidden)
        rows, columns = features[level].shape[2:]
        y, x, k = rows - 1, columns - 2, count - 1
        index = (y * columns + x) * count + k
        assert torch.equal(objectness[level][:, index], logits[:, k, y, x])
        assert torch.equal(deltas[level][:, index], offsets[:, 4 * k : 4 * k + 4, y, x])


def _propose(rpn: RegionProposalNetwork, anchors: Tensor, logits: list[float], size: tuple[int, int]) -> Tensor:
    """Proposals of one image whose single level holds ``anchors``, not moved."""
    deltas = [torch.zeros(1, len(anchors), 4)]
    (proposals,) = _unpadded(rpn.propose([torch.tensor([logits])], deltas, anchors, [size]))
    return proposals


def _unpadded(proposals: Tensor) -> list[Tensor]:
    """The proposals of each image: the rows before those of zeros."""
    counts = proposals.any(2).sum(1).tolist()
    assert all(not own[count:].any() for own, count in zip(proposals, counts, strict=True))
    return [own[:count] for own, count in zip(proposals, counts, strict=True)]


def test_proposals_by_hand() -> None:
    rpn = _rpn(nms_threshold=0.5, min_size=1.0).eval()
    anchors = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, 9.0],  # IoU 0.9 with the first, lower score: dropped
            [-8.0, -8.0, 4.0, 4.0],  # cut to [0, 0, 4, 4]
            [30.0, 5.0, 45.0, 9.0],  # cut to [30, 5, 32, 9]
            [40.0, 5.0, 45.0, 9.0],  # outside: no area left
        ]
    )
    proposals = _propose(rpn, anchors, [2.0, 1.0, 0.0, 3.0, 9.0], (16, 32))
    assert proposals.tolist() == [[30, 5, 32, 9], [0, 0, 10, 10], [0, 0, 4, 4]]


def test_proposals_are_counted_per_level_and_image() -> None:
    rpn = _rpn(pre_nms=(3, 2), post_nms=(4, 3), nms_threshold=0.99)
    anchors = torch.arange(10.0)[:, None].repeat(1, 4) + torch.tensor([0.0, 0.0, 5.0, 5.0])
    objectness = [torch.randn(2, 6), torch.randn(2, 4)]
    deltas = [torch.zeros(2, 6, 4), torch.zeros(2, 4, 4)]
    for training, pre_nms, post_nms in ((True, 3, 4), (False, 2, 3)):
        rpn.train(training)
        proposals = rpn.propose(objectness, deltas, anchors, [(100, 100)] * 2)
        expected = []
        for image in range(2):
            candidates = []
            for level, start in ((0, 0), (1, 6)):
                best = objectness[level][image].argsort(descending=True)[:pre_nms]
                candidates += [(objectness[level][image][i].item(), anchors[start + i].tolist()) for i in best.tolist()]
            expected.append([box for _, box in sorted(candidates, reverse=True)[:post_nms]])
        assert proposals.tolist() == expected


def test_proposals_of_a_batch_are_those_of_its_images() -> None:
    """Image by image, each with its own size; the second has no proposals, for its outputs are not finite."""
    torch.manual_seed(0)
    rpn = _rpn(pre_nms=(30, 30), post_nms=(20, 20), nms_threshold=0.3).eval()
    sizes = [(32, 32), (32, 24), (20, 32), (16, 16)]
    features = [torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)]
    anchors = rpn.anchors(features, (32, 32))
    objectness = [torch.randn(4, 64), torch.randn(4, 16)]
    deltas = [torch.randn(4, 64, 4) / 4, torch.randn(4, 16, 4) / 4]
    for level in objectness:
        level[1] = float("nan")
        level[3] = level[2]  # equal scores in two images
    proposals = _unpadded(rpn.propose(objectness, deltas, anchors, sizes))
    for image, size in enumerate(sizes):
        one = slice(image, image + 1)
        (alone,) = _unpadded(rpn.propose([o[one] for o in objectness], [d[one] for d in deltas], anchors, [size]))
        assert torch.equal(proposals[image], alone)
    counts = [len(own) for own in proposals]
    assert counts[0] == 20  # of some 40: the limit holds for an image, not for the batch
    assert counts[1] == 0
    assert min(counts[2:]) > 5


def test_equal_boxes_of_different_levels_and_images_all_stay() -> None:
    rpn = _rpn().eval()
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 2)
    objectness, deltas = [torch.tensor([[1.0]]), torch.tensor([[2.0]])], [torch.zeros(1, 1, 4)] * 2
    assert len(_unpadded(rpn.propose(objectness, deltas, anchors, [(16, 16)]))[0]) == 2
    twice = [torch.cat([level] * 2) for level in objectness], [torch.cat([level] * 2) for level in deltas]
    assert [len(own) for own in _unpadded(rpn.propose(*twice, anchors, [(16, 16)] * 2))] == [2, 2]


def test_outputs_that_are_not_finite_give_no_proposals() -> None:
    """The trainer names the pictures of a loss that is not finite; the kernels must not stop it before."""
    rpn = _rpn().eval()
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 12.0, 12.0]])
    deltas = [torch.full((1, 2, 4), float("nan"))]
    assert not rpn.propose([torch.full((1, 2), float("nan"))], deltas, anchors, [(16, 16)]).any()
    deltas = [torch.tensor([[[0.0, 0.0, math.inf, math.inf], [-math.inf, math.inf, 0.0, 0.0]]])]
    found = rpn.propose([torch.zeros(1, 2)], deltas, anchors, [(16, 16)])
    assert bool(found.isfinite().all())


def test_losses_by_hand() -> None:
    """Four anchors, one cell: one match, one neither, two background."""
    rpn = _rpn(high=0.7, low=0.3)
    cell = (4, 4, 12, 12)
    anchors = torch.tensor(
        [[4.0, 4.0, 12.0, 10.0], [4.0, 4.0, 12.0, 8.0], [20.0, 20.0, 28.0, 28.0], [0.0, 20.0, 8.0, 28.0]]
    )  # IoU 0.75, 0.5, 0, 0
    objectness = torch.tensor([[0.3, 5.0, -1.0, 2.0]], requires_grad=True)
    deltas = torch.zeros(1, 4, 4, requires_grad=True)
    losses = rpn.losses(objectness, deltas, anchors, [_labels(cell)])

    def cross_entropy(logit: float, truth: float) -> float:
        p = 1 / (1 + math.exp(-logit))
        return -math.log(p if truth else 1 - p)

    expected = (cross_entropy(0.3, 1) + cross_entropy(-1.0, 0) + cross_entropy(2.0, 0)) / 3
    assert losses["loss_objectness"].item() == pytest.approx(expected, rel=1e-6)
    # centre (8, 7) -> (8, 8): dy = 1/6; height 6 -> 8: dh = log(8/6); both above beta = 1/9
    expected = ((1 / 6 - 0.5 / 9) + (math.log(8 / 6) - 0.5 / 9)) / 3
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(expected, rel=1e-5)
    sum(losses.values()).backward()
    assert objectness.grad is not None
    assert objectness.grad[0, 1] == 0  # "neither" is never sampled


def test_losses_without_cells() -> None:
    rpn = _rpn()
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 8.0, 16.0, 16.0]])
    objectness = torch.zeros(2, 2, requires_grad=True)
    deltas = torch.randn(2, 2, 4, requires_grad=True)
    losses = rpn.losses(objectness, deltas, anchors, [InstanceLabels.empty(32, 32)] * 2)
    assert losses["loss_objectness"].item() == pytest.approx(math.log(2))
    assert losses["loss_rpn_box_reg"].item() == 0
    sum(losses.values()).backward()


def test_losses_of_a_batch_are_those_of_its_images() -> None:
    """With every anchor sampled; the second image has no cells, and no image's cells are matched in another."""
    torch.manual_seed(0)
    rpn = _rpn(batch_per_image=10**6, high=0.5)
    anchors = rpn.anchors([torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)], (32, 32))
    labels = [_labels((4, 4, 12, 12), (20, 3, 30, 9)), InstanceLabels.empty(32, 32), _labels((15, 15, 31, 29))]
    objectness, deltas = torch.randn(3, len(anchors)), torch.randn(3, len(anchors), 4)
    losses = rpn.losses(objectness, deltas, anchors, labels)
    sums = dict.fromkeys(losses, 0.0)
    sampled = 0
    for image, label in enumerate(labels):
        own = objectness[image : image + 1].requires_grad_()
        alone = rpn.losses(own, deltas[image : image + 1], anchors, [label])
        alone["loss_objectness"].backward()
        assert own.grad is not None
        count = int((own.grad != 0).sum())
        sums = {name: total + count * alone[name].item() for name, total in sums.items()}
        sampled += count
    for name, total in sums.items():
        assert total > 0
        assert losses[name].item() == pytest.approx(total / sampled, rel=1e-5)


def test_sampling_is_bounded_per_image() -> None:
    """With 256 anchors an image and two images, the loss is the mean over exactly 512."""
    rpn = _rpn(batch_per_image=16, positive_fraction=0.5)
    positions = torch.cartesian_prod(torch.arange(0.0, 64.0, 2), torch.arange(0.0, 64.0, 2))
    anchors = torch.cat([positions, positions + 8], dim=1)
    labels = _labels((8, 8, 16, 16), (30, 30, 38, 38), size=(64, 64))
    objectness = torch.zeros(2, len(anchors), requires_grad=True)
    losses = rpn.losses(objectness, torch.zeros(2, len(anchors), 4), anchors, [labels] * 2)
    losses["loss_objectness"].backward()
    assert objectness.grad is not None
    assert ((objectness.grad != 0).sum(1) == 16).all()
    assert ((objectness.grad < 0).sum(1) == 2).all()  # the two anchors that are the cells; others reach no 0.7


def test_proposals_carry_no_gradient() -> None:
    rpn = _rpn().train()
    features = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 4, 4)]
    proposals, losses = rpn(features, (32, 32), [(32, 32)], [_labels((4, 4, 12, 12))])
    assert not proposals.requires_grad
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in rpn.head.parameters())
    assert rpn.eval()(features, (32, 32), [(32, 32)])[1] == {}


def test_initial_objectness_is_undecided() -> None:
    torch.manual_seed(0)
    objectness, deltas = RPNHead(256, [4])([F.relu(torch.randn(1, 256, 16, 16))])
    assert objectness[0].abs().max() < 0.5
    assert deltas[0].abs().max() < 0.5
