"""The box branch on small hand-computed cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskrcnn.model.roi_heads import BoxHead, RoIPool, SampledRoIs
from maskrcnn.model.rois import has_area
from maskrcnn.structures import InstanceLabels


def _head(num_classes: int = 3, **options: object) -> BoxHead:
    return BoxHead(8, num_classes, RoIPool(7), hidden=16, **options)  # type: ignore[arg-type]


def _pyramid(batch: int, height: int, width: int, channels: int = 8) -> list[Tensor]:
    return [torch.randn(batch, channels, height // stride, width // stride) for stride in (4, 8, 16, 32)]


def _labels(boxes: list[tuple[int, int, int, int]], classes: list[int], size: int = 64) -> InstanceLabels:
    """Boxes as cells, each class on its own plane; ordered by class, as :meth:`from_planes` orders them."""
    planes = torch.zeros(3, size, size, dtype=torch.int32)
    for number, ((x0, y0, x1, y1), k) in enumerate(zip(boxes, classes, strict=True), start=1):
        planes[k - 1, y0:y1, x0:x1] = number
    return InstanceLabels.from_planes(planes, [1, 2, 3])


@pytest.mark.parametrize("size", [(64, 96), (256, 32)])
@pytest.mark.parametrize("aligned", [False, True])
def test_pool_is_roi_align_of_the_level(size: tuple[int, int], aligned: bool) -> None:
    """RoIs of 28, 224 and 500 pixels belong to P2, P4 and P5 (FPN's equation 1); P6 is not used."""
    vision_ops = pytest.importorskip("torchvision.ops")
    features = [*_pyramid(2, *size), torch.randn(2, 8, 1, 1)]
    rois = torch.tensor([[0.0, 3, 2, 31, 30], [1.0, 0, 0, 224, 224], [0.0, 5, 5, 505, 505]])
    pooled = RoIPool(7, aligned=aligned)(features, rois, size)
    assert pooled.shape == (3, 8, 7, 7)
    for index, level in enumerate((0, 2, 3)):
        roi = rois[index : index + 1]
        expected = vision_ops.roi_align(features[level], roi, 7, 1 / 4 / 2**level, 2, aligned)
        assert torch.allclose(pooled[index : index + 1], expected, atol=1e-5)


def test_canonical_size_moves_small_rois_up() -> None:
    features = _pyramid(1, 64, 64)
    roi = torch.tensor([[0.0, 4, 4, 36, 36]])
    small = RoIPool(7, canonical_size=32)(features, roi, (64, 64))  # 32 pixels belong to P4 now
    moved = RoIPool(7)([features[2]] * 4, roi, (64, 64))
    assert small.shape == moved.shape
    assert not torch.allclose(small, RoIPool(7)(features, roi, (64, 64)))


def test_forward_shapes_and_dtype() -> None:
    logits, deltas = _head()(_pyramid(2, 64, 64), torch.tensor([[0.0, 1, 1, 20, 20], [1.0, 3, 3, 9, 9]]), (64, 64))
    assert logits.shape == (2, 4)
    assert deltas.shape == (2, 4, 4)
    logits, deltas = _head()(_pyramid(1, 64, 64), torch.zeros(0, 5), (64, 64))
    assert logits.shape == (0, 4)
    assert deltas.shape == (0, 4, 4)


def test_sample_by_hand() -> None:
    """Two images: cells are matched with their own image's instances, and added to the proposals."""
    head = _head(batch_per_image=100, positive_fraction=1.0)
    first = _labels([(0, 0, 10, 10), (20, 20, 40, 40)], [2, 1])  # from_planes puts class 1 first
    second = _labels([(5, 5, 15, 15)], [3])
    proposals = torch.tensor(
        [
            [
                [0.0, 0.0, 10.0, 8.0],  # IoU 0.8 with the cell of class 2
                [50.0, 50.0, 60.0, 60.0],  # 0
            ],
            [
                [5.0, 5.0, 15.0, 9.0],  # 0.4: background
                [0.0, 0.0, 0.0, 0.0],  # padding
            ],
        ]
    )
    sampled = head.sample(proposals, [first, second])
    rows = {
        tuple(roi): (k, positive)
        for roi, k, positive in zip(
            sampled.rois.tolist(),
            sampled.classes.tolist(),
            [i in sampled.positive for i in range(len(sampled.rois))],
            strict=True,
        )
    }
    assert rows == {
        (0, 0, 0, 10, 8): (2, True),
        (0, 50, 50, 60, 60): (0, False),
        (0, 0, 0, 10, 10): (2, True),
        (0, 20, 20, 40, 40): (1, True),
        (1, 5, 5, 15, 9): (0, False),
        (1, 5, 5, 15, 15): (3, True),
    }
    all_classes = torch.cat([first.classes, second.classes])
    all_boxes = torch.cat([first.boxes, second.boxes])
    assert torch.equal(all_classes[sampled.instances], sampled.classes[sampled.positive])
    assert torch.equal(all_boxes[sampled.instances], sampled.boxes)


def test_sample_is_bounded() -> None:
    torch.manual_seed(0)
    head = _head(batch_per_image=16, positive_fraction=0.25)
    label = _labels([(0, 0, 10, 10)], [1])
    near = torch.tensor([0.0, 0.0, 10.0, 10.0]) + torch.rand(50, 4)
    far = torch.tensor([30.0, 30.0, 40.0, 40.0]) + torch.rand(50, 4)
    one = torch.cat([near, far])
    sampled = head.sample(one.repeat(2, 1, 1), [label] * 2)
    assert len(sampled.rois) == 32
    assert len(sampled.positive) == len(sampled.boxes) == len(sampled.instances) == 8
    assert (sampled.classes > 0).sum() == 8
    assert (sampled.rois[:, 0] == torch.tensor([0.0, 1.0]).repeat_interleave(16)).all()


def _batch(seed: int = 0) -> tuple[Tensor, list[InstanceLabels]]:
    """Proposals of five images, padded: image 1 has neither proposals nor cells, image 2 no cells, image 3 no
    proposals; the cells of images 0 and 4 lie in the same places."""
    generator = torch.Generator().manual_seed(seed)
    cells = [(0, 0, 10, 10), (20, 20, 40, 40), (45, 5, 60, 30)]
    empty = InstanceLabels.empty(64, 64)
    labels = [_labels(cells, [2, 1, 3]), empty, empty, _labels(cells[:1], [3]), _labels(cells[1:], [3, 1])]
    proposals = torch.zeros(5, 40, 4)
    for image, count in ((0, 30), (2, 20), (4, 40)):
        boxes = torch.tensor(cells, dtype=torch.float32).repeat(14, 1)[:count]
        proposals[image, :count] = boxes + torch.randn(count, 4, generator=generator) * 2
    return proposals, labels


def _rows(sampled: SampledRoIs, image: int) -> list[tuple]:
    """What is known of each RoI of an image, sorted: RoI, class, instance and cell box (-1 for background)."""
    instance, box = torch.full((len(sampled.rois), 1), -1.0), torch.full((len(sampled.rois), 4), -1.0)
    instance[sampled.positive, 0], box[sampled.positive] = sampled.instances.float(), sampled.boxes
    rows = torch.cat([sampled.rois, sampled.classes[:, None].float(), instance, box], dim=1)
    return sorted(map(tuple, rows[sampled.rois[:, 0] == image].tolist()))


def test_samples_of_a_batch_are_those_of_its_images() -> None:
    """With everything sampled: as if each image were alone, its instances counted on from those before it."""
    head = _head(batch_per_image=1000, positive_fraction=1.0)
    proposals, labels = _batch()
    sampled = head.sample(proposals, labels)
    assert sampled.rois[:, 0].tolist() == sorted(sampled.rois[:, 0].tolist())
    first = 0
    for image, label in enumerate(labels):
        own = proposals[image, has_area(proposals[image])]
        alone = head.sample(own[None], [label])
        rows = [(image, *row[1:6], row[6] + first if row[5] else -1, *row[7:]) for row in _rows(alone, 0)]
        assert _rows(sampled, image) == rows
        assert len(rows) == len(own) + len(label)
        first += len(label)
    assert len(sampled.rois) == 90 + 6
    assert not bool((sampled.classes[sampled.rois[:, 0] == 2] > 0).any())  # boxes on cells of other images alone


def test_sample_without_cells_or_proposals() -> None:
    head = _head()
    empty = InstanceLabels.empty(64, 64)
    sampled = head.sample(torch.tensor([[[0.0, 0.0, 5.0, 5.0]], [[0.0, 0.0, 0.0, 0.0]]]), [empty, empty])
    assert sampled.rois.tolist() == [[0, 0, 0, 5, 5]]
    assert sampled.classes.tolist() == [0]
    assert sampled.boxes.shape == (0, 4)
    nothing = head.sample(torch.zeros(1, 3, 4), [empty])
    logits, deltas = head(_pyramid(1, 64, 64), nothing.rois, (64, 64))
    losses = head.losses(logits, deltas, nothing)
    sum(losses.values()).backward()
    assert all(value.item() == 0 for value in losses.values())
    assert all(p.grad is not None for p in head.parameters())


def test_losses_by_hand() -> None:
    head = _head(num_classes=2)
    sampled = SampledRoIs(
        rois=torch.tensor([[0.0, 0, 0, 10, 10], [0.0, 5, 5, 9, 9]]),
        classes=torch.tensor([2, 0]),
        positive=torch.tensor([0]),
        instances=torch.tensor([0]),
        boxes=torch.tensor([[1.0, 0.0, 11.0, 10.0]]),  # one to the right: dx = 10 * 1/10
    )
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    deltas = torch.full((2, 3, 4), 100.0)  # those of other classes and of background count nothing
    deltas[0, 2] = torch.tensor([0.5, 0.05, 0.0, 0.0])
    losses = head.losses(logits, deltas, sampled)
    first = math.log(1 + math.e + math.e**2) - 2
    second = math.log(math.e**3 + 2) - 3
    assert losses["loss_classifier"].item() == pytest.approx((first + second) / 2, rel=1e-5)
    beta = 1 / 9
    expected = ((0.5 - beta / 2) + 0.5 * 0.05**2 / beta) / 2
    assert losses["loss_box_reg"].item() == pytest.approx(expected, rel=1e-5)


def _detect(
    head: BoxHead, logits: Tensor, deltas: Tensor, proposals: Tensor, sizes: list[tuple[int, int]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The boxes, scores and classes of each image, without padding."""
    rois, scores, labels, counts = head.detect(logits.flatten(0, 1), deltas.flatten(0, 1), proposals, sizes)
    assert len(rois) == len(scores) == len(labels) == len(sizes)
    assert torch.equal(rois[..., 0], torch.arange(float(len(sizes)))[:, None].expand(scores.shape))
    return [(rois[i, :n, 1:], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts.tolist())]


def test_detect_by_hand() -> None:
    """One proposal may become detections of two classes; NMS is within a class; the best of each image stay."""
    head = _head(num_classes=2, score_threshold=0.2, nms_threshold=0.5, detections_per_image=3)
    proposals = torch.zeros(2, 4, 4)
    proposals[0] = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0], [0.0, 40.0, 8.0, 48.0]]
    )
    proposals[1, 0] = torch.tensor([-4.0, -4.0, 6.0, 6.0])
    probabilities = torch.tensor(
        [
            [[0.1, 0.5, 0.4], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8], [0.65, 0.1, 0.25]],
            [[0.0, 0.05, 0.95], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]],  # the last three: padding
        ]
    )
    first, second = _detect(head, probabilities.log(), torch.zeros(2, 4, 3, 4), proposals, [(64, 64), (64, 64)])
    # 0.8 (class 2), 0.6 (class 1, over the 0.5 of the first proposal), 0.4 (class 2); 0.25 is the fourth
    assert first[0].tolist() == [[20, 20, 30, 30], [0, 0, 10, 9], [0, 0, 10, 10]]
    assert first[1].tolist() == pytest.approx([0.8, 0.6, 0.4])
    assert first[2].tolist() == [2, 1, 2]
    assert second[0].tolist() == [[0, 0, 6, 6]]
    assert (second[1].tolist(), second[2].tolist()) == (pytest.approx([0.95]), [2])


def test_detections_of_a_batch_are_those_of_its_images() -> None:
    """Image 2 has proposals, but none that is a cell; images 1 and 3 have no proposals."""
    torch.manual_seed(0)
    head = _head(score_threshold=0.2, nms_threshold=0.4, detections_per_image=15)
    proposals, _ = _batch()
    sizes = [(64, 64), (64, 64), (40, 30), (64, 64), (32, 64)]
    logits, deltas = torch.randn(5, 40, 4), torch.randn(5, 40, 4, 4)
    logits[2, :, 0] = 9.0
    found = _detect(head, logits, deltas, proposals, sizes)
    for image, size in enumerate(sizes):
        own = has_area(proposals[image])
        alone = (values[image, own][None] for values in (logits, deltas, proposals))
        for ours, expected in zip(found[image], _detect(head, *alone, [size])[0], strict=True):
            assert torch.equal(ours, expected)
    counts = [len(scores) for _, scores, _ in found]
    assert counts[1:] == [0, 0, 0, 15]
    assert 5 < counts[0] <= 15  # the limit holds for an image, not for the batch


def test_images_do_not_suppress_one_another() -> None:
    """Neither in the same class nor in the next one."""
    head = _head(num_classes=2)
    proposals = torch.tensor([[[0.0, 0, 9, 9], [0.0, 0, 9, 9]], [[0.0, 0, 9, 9], [0.0, 0, 0, 0]]])
    for label in (1, 2):
        logits = torch.full((2, 2, 3), -9.0)
        logits[0, 0, label], logits[0, 1, label], logits[1, 0, 1] = 1.0, 2.0, 0.0
        first, second = _detect(head, logits, torch.zeros(2, 2, 3, 4), proposals, [(64, 64), (64, 64)])
        assert (first[2].tolist(), second[2].tolist()) == ([label], [1])
        assert torch.equal(first[1], logits[0].softmax(1)[1:, label])
        assert torch.equal(second[1], logits[1].softmax(1)[:1, 1])


def test_detect_uses_the_deltas_of_the_class() -> None:
    head = _head(num_classes=2)
    deltas = torch.zeros(1, 1, 3, 4)
    deltas[0, 0, 1, 0], deltas[0, 0, 2, 1] = 10.0, 20.0  # weights 10: right by one width; down by two heights
    logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    ((boxes, _, labels),) = _detect(head, logits, deltas, torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), [(64, 64)])
    assert dict(zip(labels.tolist(), boxes.tolist(), strict=True)) == {1: [10, 0, 20, 10], 2: [0, 20, 10, 30]}


def test_detect_drops_what_is_nothing() -> None:
    head = _head(num_classes=1, score_threshold=0.5)
    logits = torch.tensor([[[5.0, 0.0], [0.0, 5.0], [torch.nan, torch.nan]]])
    # the second is outside
    proposals = torch.tensor([[[0.0, 0.0, 5.0, 5.0], [70.0, 0.0, 80.0, 9.0], [1.0, 1.0, 5.0, 5.0]]])
    ((boxes, scores, labels),) = _detect(head, logits, torch.zeros(1, 3, 2, 4), proposals, [(64, 64)])
    assert boxes.shape == (0, 4)
    assert scores.shape == labels.shape == (0,)
