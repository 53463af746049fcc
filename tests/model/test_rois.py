"""Boxes of several images in one tensor: results equal those image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn.model.rois import best_of_each_image, clip_boxes, has_area, join_rois, large_enough, read_counts


def test_join_rois() -> None:
    rois = join_rois(torch.arange(16.0).view(2, 2, 4))
    assert rois.tolist() == [[[0, 0, 1, 2, 3], [0, 4, 5, 6, 7]], [[1, 8, 9, 10, 11], [1, 12, 13, 14, 15]]]
    assert join_rois(torch.zeros(2, 0, 4, dtype=torch.float64)).dtype == torch.float64


def test_clip_and_size() -> None:
    boxes = torch.tensor(
        [[[-5.0, -6.0, 7.0, 8.0], [2.0, 3.0, 500.0, 600.0], [-9.0, 4.0, -1.0, 9.0], [90.0, 1.0, 95.0, 2.0]]]
    )
    clipped = clip_boxes(boxes, [(50, 80)])
    assert clipped.tolist() == [[[0, 0, 7, 8], [2, 3, 80, 50], [0, 4, 0, 9], [80, 1, 80, 2]]]
    assert large_enough(clipped, 1e-2).tolist() == [[True, True, False, False]]
    assert has_area(clipped).tolist() == [[True, True, False, False]]
    odd = torch.tensor([[0.0, 0.0, torch.nan, 5.0], [0.0, 0.0, 1.0, 1.0]])
    assert large_enough(odd, 1.0).tolist() == has_area(odd).tolist() == [False, True]
    assert clip_boxes(torch.zeros(1, 0, 4), [(5, 5)]).shape == (1, 0, 4)


def test_clip_to_the_image_of_each_box() -> None:
    boxes = torch.tensor([[[-1.0, -1.0, 99.0, 99.0], [1.0, 2.0, 3.0, 4.0]]]).repeat(2, 1, 1)
    before = boxes.clone()
    for shaped in (boxes, boxes[:, :, None]):
        clipped = clip_boxes(shaped, [(50, 80), (30, 20)])
        assert clipped.shape == shaped.shape
        assert clipped.view(2, 2, 4)[:, 0].tolist() == [[0, 0, 80, 50], [0, 0, 20, 30]]
        assert torch.equal(clipped.view(2, 2, 4)[:, 1], boxes[:, 1])
    assert torch.equal(boxes, before)
    assert clip_boxes(torch.full((1, 1, 4), torch.nan), [(5, 5)]).isnan().all()


def _crowd(seed: int, images: int = 4, count: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores with ties and classes, some not finite; nothing in image 2 is valid."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, count, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + torch.rand(images, count, 2, generator=generator) * 20], dim=2)
    boxes[:, ::10] = torch.nan
    scores = torch.randint(0, 40, (images, count), generator=generator) / 40
    scores[:, 1::20] = torch.nan
    scores[:, 2::20] = -torch.inf
    scores[2, ::2], boxes[2, 1::2] = torch.inf, 0
    return boxes, scores, torch.randint(0, 3, (images, count), generator=generator)


@pytest.mark.parametrize("limit", [0, 1, 15, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_best_of_each_image_as_torchvision_image_by_image(seed: int, limit: int) -> None:
    vision_ops = pytest.importorskip("torchvision.ops")
    boxes, scores, category = _crowd(seed)
    index, kept = best_of_each_image(boxes, scores, category, 0.2, 2.0, limit)
    assert index.shape == kept.shape == (4, min(limit, 100))
    for i in range(4):
        own = torch.nonzero(large_enough(boxes[i], 2.0) & scores[i].isfinite()).squeeze(1)
        # torchvision's order of equal scores is not the given one: told apart by a step too small to change an order
        score = scores[i, own].double() - 1e-9 * torch.arange(len(own))
        best = own[vision_ops.batched_nms(boxes[i, own].double(), score, category[i, own], 0.2)]
        assert index[i, kept[i]].tolist() == best[:limit].tolist()
        assert kept[i].tolist() == sorted(kept[i].tolist(), reverse=True)  # padding is at the end
        assert len(own) == 0 if i == 2 else 15 < len(best) < len(own) - 5  # some are dropped
    assert index.numel() == 0 or (index.min() >= 0 and index.max() < 100)  # that of padding as well


def test_images_do_not_suppress_one_another() -> None:
    boxes = torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(3, 2, 4)
    scores = torch.tensor([[0.9, 0.8], [-torch.inf, torch.nan], [0.5, 0.7]])
    index, kept = best_of_each_image(boxes, scores, torch.zeros(3, 2, dtype=torch.int64), 0.5, 1.0, 10)
    assert kept.tolist() == [[True, False], [False, False], [True, False]]
    assert index[[0, 2], 0].tolist() == [0, 1]


def test_counts_are_read() -> None:
    assert read_counts(torch.tensor([3, 0, 7])) == [3, 0, 7]
