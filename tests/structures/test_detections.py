"""Detections, and their conversion to COCO's format and label images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from maskrcnn.structures import Detections


def _detections(count: int = 3) -> Detections:
    boxes = torch.tensor([[2.0, 3.0, 10.0, 9.0], [5.0, 5.0, 20.0, 18.0], [0.0, 0.0, 4.0, 4.0]])[:count]
    scores = torch.tensor([0.9, 0.8, 0.3])[:count]
    return Detections(boxes, scores, torch.tensor([1, 2, 2])[:count], torch.ones(count, 28, 28), (24, 32))


def test_select_and_filter() -> None:
    found = _detections()
    assert len(found) == 3
    assert found.filter(0.8).labels.tolist() == [1, 2]
    assert found.select(torch.tensor([2, 0])).scores.tolist() == pytest.approx([0.3, 0.9])
    none = found.filter(1.0)
    assert len(none) == 0
    assert none.size == (24, 32)
    assert none.to_rle() == []
    assert none.to_coco(1) == []
    assert not none.to_labels().any()


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="boxes, scores, labels and masks"):
        Detections(torch.zeros(2, 4), torch.zeros(1), torch.zeros(2), torch.zeros(2, 28, 28), (5, 5))
    with pytest.raises(ValueError, match="boxes, scores, labels and masks"):
        Detections(torch.zeros(2, 5), torch.zeros(2), torch.zeros(2), torch.zeros(2, 28, 28), (5, 5))


def test_to_moves_every_tensor() -> None:
    moved = _detections().to("meta")
    assert {t.device.type for t in (moved.boxes, moved.scores, moved.labels, moved.masks)} == {"meta"}


def test_coco_results() -> None:
    rows = _detections(2).to_coco(image_id=7)
    assert [row["image_id"] for row in rows] == [7, 7]
    assert [row["category_id"] for row in rows] == [1, 2]
    assert rows[0]["bbox"] == [2, 3, 8, 6]  # x, y, width, height
    assert rows[0]["score"] == pytest.approx(0.9)
    for row, rle in zip(rows, _detections(2).to_rle(), strict=True):
        assert row["segmentation"]["size"] == [24, 32]
        assert isinstance(row["segmentation"]["counts"], str)
        assert np.array_equal(coco_mask.decode(row["segmentation"]), coco_mask.decode(rle))


def test_coco_boxes_have_two_decimals() -> None:
    boxes = torch.tensor([[2.0041, 3.3333, 10.0099, 9.6666]])
    cells = Detections(boxes, torch.tensor([0.5]), torch.tensor([1]), torch.ones(1, 28, 28), (24, 32))
    assert cells.to_coco(1)[0]["bbox"] == [2.0, 3.33, 8.01, 6.33]


def test_masks_fill_their_boxes() -> None:
    mask = coco_mask.decode(_detections(1).to_rle()[0])
    assert mask.shape == (24, 32)
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (2, 9, 3, 8)
    assert mask.sum() == 8 * 6


def test_labels_picture_lets_the_higher_score_win() -> None:
    found = _detections()
    labels = found.to_labels()
    assert labels.dtype == torch.int32
    assert labels.shape == (24, 32)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    assert labels[6, 7] == 1  # in both of the first two boxes
    assert labels[15, 15] == 2


def test_resized() -> None:
    cells = replace(_detections(), diameter=10.0, mask_threshold=0.4)
    larger = cells.resized((48, 64))
    assert larger.size == (48, 64)
    assert torch.equal(larger.boxes, cells.boxes * 2)
    assert torch.equal(larger.masks, cells.masks)
    assert larger.diameter == 20
    assert larger.mask_threshold == 0.4
    stretched = cells.resized((24, 64))
    assert torch.equal(stretched.boxes, cells.boxes * torch.tensor([2.0, 1, 2, 1]))


def test_filter_by_class() -> None:
    cells = _detections()
    for k, low in ((1, 0.0), (2, 0.0), (1, 2.0), (2, 2.0)):
        scores = [0.0, 0.0]
        scores[k - 1] = low
        left = cells.filter(scores)
        assert len(left) == len(cells) - (int((cells.labels == k).sum()) if low else 0)


def test_masks_are_cut_at_their_own_threshold() -> None:
    ramp = torch.linspace(0, 1, 28).repeat(28, 1)[None]
    cells = Detections(torch.tensor([[0.0, 0, 28, 28]]), torch.ones(1), torch.ones(1).long(), ramp, (28, 28))
    for threshold in (0.25, 0.5, 0.75):
        own = replace(cells, mask_threshold=threshold)
        assert own.to_rle() == cells.to_rle(threshold)
        assert int((own.to_labels() > 0).sum()) == 28 * int((ramp[0, 0] > threshold).sum())
