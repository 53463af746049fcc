"""Box deltas against hand-computed values, round trips in float64, and torchvision's coder."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from maskrcnn.model.box_coder import BoxCoder


def _boxes(seed: int, count: int = 50, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 500 - 50
    return torch.cat([corner, corner + 0.5 + torch.rand(count, 2, generator=generator, dtype=dtype) * 100], dim=1)


def test_by_hand() -> None:
    reference = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # centre (20, 40), 20 wide, 40 high
    box = torch.tensor([[20.0, 20.0, 60.0, 40.0]])  # centre (40, 30), 40 wide, 20 high
    expected = [1.0, -0.25, math.log(2), -math.log(2)]
    assert BoxCoder().encode(box, reference)[0].tolist() == pytest.approx(expected)
    weighted = [10 * expected[0], 10 * expected[1], 5 * expected[2], 5 * expected[3]]
    assert BoxCoder(10, 5).encode(box, reference)[0].tolist() == pytest.approx(weighted)
    assert torch.allclose(BoxCoder(10, 5).decode(torch.tensor([weighted]), reference), box)


@given(st.integers(0, 10**6), st.floats(0.5, 20), st.floats(0.5, 20))
@settings(max_examples=50, deadline=None)
def test_decode_inverts_encode(seed: int, shift_weight: float, scale_weight: float) -> None:
    boxes, references = _boxes(seed), _boxes(seed + 1)
    references[:, 2:] = torch.maximum(references[:, 2:], references[:, :2] + 2)  # scales below exp's clamp
    coder = BoxCoder(shift_weight, scale_weight)
    decoded = coder.decode(coder.encode(boxes, references), references)
    assert decoded.dtype == torch.float64
    assert torch.allclose(decoded, boxes, rtol=0, atol=1e-9)


def test_as_torchvision() -> None:
    utils = pytest.importorskip("torchvision.models.detection._utils")
    theirs, ours = utils.BoxCoder((10.0, 10.0, 5.0, 5.0)), BoxCoder(10, 5)
    boxes, references = _boxes(0, dtype=torch.float32), _boxes(1, dtype=torch.float32)
    assert torch.allclose(ours.encode(boxes, references), theirs.encode_single(boxes, references), atol=1e-5)
    deltas = (
        torch.randn(50, 12, generator=torch.Generator().manual_seed(2)) * 20
    )  # three classes, some beyond the clamp
    expected = theirs.decode_single(deltas, references).view(50, 3, 4)
    assert torch.allclose(ours.decode(deltas.view(50, 3, 4), references[:, None]), expected, rtol=1e-5, atol=1e-3)


def test_growth_is_limited() -> None:
    reference = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0.0, 1000.0, 1000.0]]), reference)
    assert decoded[0].tolist() == pytest.approx([8 - 500, 8 - 500, 8 + 500, 8 + 500])


def test_deltas_in_bfloat16_give_float32_boxes() -> None:
    reference = torch.tensor([[1000.0, 1000.0, 1003.0, 1005.0]])
    decoded = BoxCoder().decode(torch.zeros(1, 4, dtype=torch.bfloat16), reference)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, reference)  # bfloat16 would make 1003 of 1000
