"""The pyramid against torchvision's with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.model.fpn import FPN


def _maps(height: int, width: int, channels: tuple[int, ...] = (32, 64, 96, 128)) -> list[Tensor]:
    """Random C2..C5 of an image [2, 3, height, width]."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, c, -(-height // stride), -(-width // stride), generator=generator)
        for c, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("group_norm", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (96, 32), (100, 72)])  # the last with maps that do not halve evenly
@torch.no_grad()
def test_as_torchvision(group_norm: bool, size: tuple[int, int]) -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    layer = (lambda channels: nn.GroupNorm(32, channels)) if group_norm else None
    theirs = ops.FeaturePyramidNetwork(
        [32, 64, 96, 128], 64, ops.feature_pyramid_network.LastLevelMaxPool(), norm_layer=layer
    )
    ours = FPN((32, 64, 96, 128), 64, group_norm)
    ours.load_state_dict(theirs.state_dict())
    maps = _maps(*size)
    outputs = ours(maps)
    expected = list(theirs({str(i): m for i, m in enumerate(maps)}).values())
    assert len(outputs) == len(expected) == 5
    for own, other in zip(outputs, expected, strict=True):
        assert own.shape == other.shape
        assert torch.allclose(own, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_gradient_reaches_every_weight() -> None:
    model = FPN((32, 64, 96, 128), 64, group_norm=True)
    sum(output.square().sum() for output in model(_maps(64, 64))).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
