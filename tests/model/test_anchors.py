"""Anchors against hand-computed arrays and against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn.model.anchors import AnchorGenerator, cell_anchors


def _maps(*shapes: tuple[int, int]) -> list[Tensor]:
    return [torch.zeros(1, 1, height, width) for height, width in shapes]


def test_cell_anchors_by_hand() -> None:
    # ratio = height / width, area = size^2: for size 16 and ratio 4 the height is 32 and the width 8
    expected = [
        [-16, -4, 16, 4],
        [-8, -8, 8, 8],
        [-4, -16, 4, 16],
        [-32, -8, 32, 8],
        [-16, -16, 16, 16],
        [-8, -32, 8, 32],
    ]
    assert cell_anchors((16, 32), (0.25, 1, 4)).tolist() == expected


def test_rounding_is_torchvisions() -> None:
    # size 8, ratio 0.5: half sides 5.657 and 2.828
    assert cell_anchors((8,), (0.5,), rounded=True).tolist() == [[-6, -3, 6, 3]]
    assert cell_anchors((8,), (0.5,))[0].tolist() == pytest.approx([-5.6569, -2.8284, 5.6569, 2.8284], abs=1e-4)


def test_grid_by_hand() -> None:
    """A 2x3 map of a 64x96 image (stride 32) and a 1x2 map of stride 64 and 48: rows first, then columns."""
    anchors = AnchorGenerator(((8,), (2,)), (1.0,))(_maps((2, 3), (1, 2)), (64, 96))
    centers = [(0, 0), (32, 0), (64, 0), (0, 32), (32, 32), (64, 32)]
    expected = [[x - 4, y - 4, x + 4, y + 4] for x, y in centers] + [[-1, -1, 1, 1], [47, -1, 49, 1]]
    assert anchors.dtype == torch.float32
    assert anchors.tolist() == expected


def test_levels_may_have_different_counts() -> None:
    generator = AnchorGenerator(((8, 4), (16,)), (0.5, 1.0, 2.0))
    assert generator.per_position == [6, 3]
    anchors = generator(_maps((2, 2), (1, 1)), (8, 8))
    assert anchors.shape == (2 * 2 * 6 + 3, 4)
    areas = ((anchors[:, 2:] - anchors[:, :2]).prod(1)).tolist()
    # the first size leads at every position, so that channel k means "size 2 x stride" at both levels
    assert areas[:6] == pytest.approx([64] * 3 + [16] * 3, rel=1e-5)
    assert areas[-3:] == pytest.approx([256] * 3, rel=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (128, 128), (352, 224)])
def test_as_torchvision(size: tuple[int, int]) -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    image_list = pytest.importorskip("torchvision.models.detection.image_list")
    sizes, ratios = ((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0)
    height, width = size
    maps = _maps(*[(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)])
    theirs = detection.anchor_utils.AnchorGenerator(sizes, (ratios,) * 5)
    expected = theirs(image_list.ImageList(torch.zeros(1, 3, *size), [size]), maps)[0]
    assert torch.equal(AnchorGenerator(sizes, ratios, rounded=True)(maps, size), expected)


def test_anchors_are_computed_once() -> None:
    generator = AnchorGenerator(((8,),), (1.0,))
    first = generator(_maps((2, 2)), (8, 8))
    assert generator(_maps((2, 2)), (8, 8)) is first
    for width in range(1, 40):  # pictures of many sizes must not fill the memory
        generator(_maps((2, width)), (8, 4 * width))
    assert len(generator._cache) <= 16


@pytest.mark.parametrize(
    ("sizes", "ratios", "named"),
    [
        ((), (1,), "sizes"),
        (((),), (1,), "sizes"),
        (((0,),), (1,), "sizes"),
        (((8,),), (), "ratios"),
        (((8,),), (-1,), "ratios"),
    ],
)
def test_impossible_anchors(sizes: tuple, ratios: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AnchorGenerator(sizes, ratios)


def test_wrong_number_of_levels() -> None:
    with pytest.raises(ValueError, match="features: 1 levels, expected 2"):
        AnchorGenerator(((8,), (16,)), (1,))(_maps((2, 2)), (8, 8))
