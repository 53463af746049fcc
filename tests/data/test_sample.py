"""Batches: padding, true sizes, labels."""

from __future__ import annotations

import pytest
import torch

from maskrcnn.data import Sample, collate
from maskrcnn.structures import InstanceLabels


def sample(height: int, width: int, name: str = "a", cells: bool = True) -> Sample:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    image = torch.randint(1, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    labels = InstanceLabels.empty(height, width)
    if cells:
        planes = torch.zeros((2, height, width), dtype=torch.int32)
        planes[0, :2, :3] = 4
        planes[1, -1, -1] = 9
        labels = InstanceLabels.from_planes(planes, [1, 3])
    return Sample(image, labels, name, 1)


def test_collate_pads_to_a_multiple_of_32() -> None:
    samples = [sample(33, 20), sample(10, 70, "b"), sample(5, 5, "c", cells=False)]
    batch = collate(samples)
    assert batch.images.shape == (3, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes == [(33, 20), (10, 70), (5, 5)]
    assert batch.names == ["a", "b", "c"]
    for image, labels, original in zip(batch.images, batch.labels, samples, strict=True):
        h, w = original.size
        assert torch.equal(image[:, :h, :w].permute(1, 2, 0), original.image)
        assert image.sum() == original.image.sum()
        assert labels.size == (64, 96)
        assert torch.equal(labels.boxes, original.labels.boxes)
        assert torch.equal(labels.planes[:, :h, :w], original.labels.planes)
        assert labels.planes.sum() == original.labels.planes.sum()


def test_exact_multiple_is_not_padded() -> None:
    assert collate([sample(64, 32)]).images.shape == (1, 3, 64, 32)


def test_none_and_mismatch_are_errors() -> None:
    with pytest.raises(ValueError, match="none"):
        collate([])
    wrong = Sample(torch.zeros((4, 4, 3), dtype=torch.uint8), InstanceLabels.empty(5, 4), "odd", 1)
    with pytest.raises(ValueError, match="odd"):
        collate([wrong])


def test_to_moves_everything() -> None:
    batch = collate([sample(8, 8)]).to("meta")
    assert batch.images.device.type == "meta"
    assert {t.device.type for t in (batch.labels[0].planes, batch.labels[0].boxes)} == {"meta"}
