"""``torch.compile`` and ``torch.export`` accept the unmodified network, with the same results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.structures import Detections, InstanceLabels

SIZES = ((64, 96), (96, 64))
SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    """Small and random; in some pictures it finds as many cells as it may, in others fewer, in a white one none."""
    torch.manual_seed(0)
    network = mask_rcnn_resnet_fpn(
        18,
        2,
        norm="frozen_batch",
        rpn_pre_nms=(64, 32),
        rpn_post_nms=(64, 32),
        roi_batch_per_image=16,
        box_score_threshold=0.52,
        detections_per_image=25,
    )
    nn.init.normal_(network.box_head.cls_score.weight, std=0.02)
    nn.init.normal_(network.mask_head.mask_fcn_logits.weight, std=0.1)
    return network.eval()


def pictures(height: int, width: int) -> list[Tensor]:
    """Noise, in which different numbers of cells are found, and white, in which there is none."""
    return [
        *(picture(height, width, seed) for seed in SEEDS),
        torch.full((1, 3, height, width), 255, dtype=torch.uint8),
    ]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)


def cells(height: int, width: int) -> InstanceLabels:
    """Nine squares of two classes."""
    planes = torch.zeros(2, height, width, dtype=torch.int32)
    for number in range(9):
        y, x = 20 * (number // 3), 20 * (number % 3)
        planes[number % 2, y : y + 16, x : x + 16] = number + 1
    return InstanceLabels.from_planes(planes, (1, 2))


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def tensors(detections: Detections) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return detections.boxes, detections.scores, detections.labels, detections.masks


class Whole(nn.Module):
    """From a picture to tensors: export knows no :class:`Detections`."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (detections,) = self.model(images, [(images.shape[2], images.shape[3])])
        return tensors(detections)


class Dense(nn.Module):
    """From a picture to what every anchor is: all but the choice of boxes."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        objectness, deltas = self.model.rpn.head(self.model.features(images, [(images.shape[2], images.shape[3])]))
        return [*objectness, *deltas]


@torch.no_grad()
def test_compiled_detections(model: MaskRCNN) -> None:
    """With PyTorch's settings as they are: graphs end where a shape depends on data."""
    compiled = torch.compile(model, backend="eager")
    (found,), (expected,) = (network(picture(*SIZES[0]), SIZES[:1]) for network in (compiled, model))
    assert len(expected) > 0
    assert_same(tensors(found), tensors(expected))


@torch.no_grad()
def test_compiled_group_norm() -> None:
    """By a picture's own statistics, by those of another one, and by its own again."""
    torch.manual_seed(0)
    network = mask_rcnn_resnet_fpn(18, 2, norm="group").eval()
    height, width = SIZES[0]
    image, other = picture(height, width), picture(height, width, seed=1) // 4

    def features(of: nn.Module, images: Tensor) -> list[Tensor]:
        return list(of(images, SIZES[:1]))

    compiled = torch.compile(network.features, backend="eager", fullgraph=True)
    own = features(network.features, image)
    assert_same(features(compiled, image), own)
    held = network.with_statistics(network.statistics_of(other, SIZES[:1]))
    compiled_held = torch.compile(held.features, backend="eager", fullgraph=True)
    expected = features(held.features, image)
    assert_same(features(compiled_held, image), expected)
    assert (expected[0] - own[0]).abs().max() > 0.1
    assert_same(features(compiled, image), own)


@pytest.mark.slow
@torch.no_grad()
def test_one_graph_where_shapes_may_depend_on_data(model: MaskRCNN) -> None:
    """It finds as many cells as there are, none included, in pictures of two sizes."""
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for size in SIZES:
            counts = set()
            for images in pictures(*size):
                (found,), (expected,) = (network(images, [size]) for network in (compiled, model))
                assert_same(tensors(found), tensors(expected))
                counts.add(len(found))
            assert len(counts) > 2
            assert min(counts) == 0


@pytest.mark.slow
def test_compiled_losses_and_gradients(model: MaskRCNN) -> None:
    size = SIZES[0]
    gradients, losses = [], []
    model.train()
    try:
        for network in (model, torch.compile(model, backend="aot_eager")):
            torch.manual_seed(1)  # of the sampling
            model.zero_grad()
            own = network(picture(*size), [size], [cells(*size)])
            sum(own.values()).backward()
            losses.append(own)
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        model.zero_grad()
        model.eval()
    assert losses[0].keys() == losses[1].keys()
    assert_same([losses[1][name].detach() for name in losses[0]], [loss.detach() for loss in losses[0].values()])
    for own_gradient, other in zip(*gradients, strict=True):
        assert (own_gradient - other).norm() <= 1e-3 * other.norm()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@torch.no_grad()
def test_inductor_compiles_the_kernels_callers(model: MaskRCNN) -> None:
    """The mask head: RoIAlign, 3x3 convolutions and what inductor makes of the rest, for any number of cells."""
    features = model.features(picture(*SIZES[0]), SIZES[:1])
    compiled = torch.compile(model.mask_head, dynamic=True)
    for count in (3, 7):
        corners = 40 * torch.rand(count, 2, generator=torch.Generator().manual_seed(count))
        rois = torch.cat([torch.zeros(count, 1), corners, corners + 20], dim=1)
        classes = torch.arange(count) % 2 + 1
        assert_same([compiled(features, rois, classes, SIZES[0])], [model.mask_head(features, rois, classes, SIZES[0])])


@torch.no_grad()
def test_exported_features_and_rpn_head(model: MaskRCNN) -> None:
    """For other sizes too, as long as every level goes through the same convolution; the program checks that."""
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(Dense(model), (picture(128, 192),), dynamic_shapes=(sides,), strict=False)
    for size in ((128, 192), (128, 160), (160, 192)):
        images = picture(*size)
        assert_same(program.module()(images), Dense(model)(images))


@torch.no_grad()
def test_exported_network(model: MaskRCNN) -> None:
    """In pictures of one size it finds as many cells as there are, none included. The network stays as it was: tracing
    works on tensors without values, none of which may stay among the anchors that are kept."""
    model.rpn.anchors._cache.clear()
    exported = torch.export.export(Whole(model), (picture(*SIZES[0]),), strict=False).module()
    assert not model.rpn.anchors._cache
    counts = set()
    for images in pictures(*SIZES[0]):
        found = exported(images)
        assert_same(found, Whole(model)(images))
        counts.add(len(found[0]))
    assert len(counts) > 2
    assert min(counts) == 0
