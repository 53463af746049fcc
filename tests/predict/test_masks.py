"""Resampling of masks to other boxes; alignment of masks of networks that were trained as torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from maskrcnn import ops
from maskrcnn.predict.masks import align_masks, resample_masks
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections, InstanceLabels
from tests.export.cells import masks_of
from tests.shapes import ellipse, instance, iou, polygon, wider
from tests.stand_in import StandIn

CELLS = 40  # of each size


def test_resampling_to_the_same_box_and_to_its_halves() -> None:
    masks = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.0, 4, 17, 40], [0.5, 0.5, 6, 9]])
    torch.testing.assert_close(resample_masks(masks, boxes, boxes), masks)
    upper = boxes.clone()
    upper[:, 3] = (boxes[:, 1] + boxes[:, 3]) / 2
    halves = resample_masks(masks, boxes, upper)  # bins of half the height, a quarter of a row from those of the mask
    torch.testing.assert_close(halves[:, 1:27:2], 0.75 * masks[:, :13] + 0.25 * masks[:, 1:14])


def test_what_is_outside() -> None:
    masks, boxes = torch.ones(1, 4, 4), torch.tensor([[0.0, 0, 8, 8]])
    right = boxes + torch.tensor([8.0, 0, 8, 0])
    assert not resample_masks(masks, boxes, right).any()
    assert resample_masks(masks, boxes, right, "border").min() == 1


def _ious(draw: Callable, side: int, spread: float, convert: bool) -> np.ndarray:
    """Of cells whose masks are torchvision's targets, pasted exactly: float64 [CELLS]."""
    rng = np.random.default_rng(side)
    values = []
    for _ in range(CELLS):
        mask = draw(side, rng)
        cell = instance(mask)
        box = wider(cell.boxes, spread, rng)
        target = ops.crop_labels(cell.planes, box, cell.plane, cell.ids, 28, aligned=False)
        found = Detections(box, torch.ones(1), cell.classes, align_masks(target, box) if convert else target, cell.size)
        values.append(iou(mask, masks_of(found)[0]))
    return np.array(values)


@pytest.mark.parametrize("side", [6, 8, 10, 14, 20, 28, 40, 80])
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("draw", [ellipse, polygon])
def test_masks_of_a_perfect_torchvision_head_are_moved_into_their_boxes(
    draw: Callable, side: int, spread: float
) -> None:
    values = _ious(draw, side, spread, convert=True)
    assert values.min() >= 0.94
    assert values.mean() >= 0.985


def test_without_the_move_they_do_not_fit() -> None:
    assert _ious(ellipse, 10, 0, convert=False).mean() < 0.87
    assert _ious(ellipse, 20, 0, convert=False).mean() < 0.94


def test_boxes_smaller_than_a_pixel_and_none() -> None:
    """torchvision's RoIs are at least one pixel wide: a mask of a smaller box shows more than the box."""
    masks = (torch.arange(8.0) / 7).expand(1, 8, 8)  # rises to the right
    box = torch.tensor([[2.0, 2, 2.5, 3]])
    moved = align_masks(masks, box)  # sees x from 2.5 to 3.5
    assert not moved.any()
    assert align_masks(masks[:0], box[:0]).shape == (0, 8, 8)


class PerfectHead(StandIn):
    """Stands in for a network that finds the cells of a batch of labels, with targets for masks."""

    def __init__(self, aligned: bool) -> None:
        super().__init__()
        self.aligned = aligned

    def detect(self, image: Tensor) -> Detections:
        cells = InstanceLabels.from_planes(image[:1].int().contiguous(), [1])  # a cell's number is its pixels' colour
        targets = ops.crop_labels(cells.planes, cells.boxes, cells.plane, cells.ids, 28, aligned=self.aligned)
        return Detections(cells.boxes, torch.ones(len(cells)), cells.classes, targets, cells.size)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("augment", "tile"), [("none", 512), ("flips", 512), ("none", 96)])
def test_the_predictor_gives_exact_masks_whatever_the_network(aligned: bool, augment: str, tile: int) -> None:
    picture = np.zeros((160, 160), np.uint8)
    rng = np.random.default_rng(0)
    truth = []
    for number in range(16):
        mask = np.pad(ellipse(12, rng), ((8, 8), (8, 8)))
        top, left = 40 * (number // 4), 40 * (number % 4)
        picture[top : top + 40, left : left + 40][mask] = number + 1
        truth.append(picture == number + 1)
    predictor = Predictor(
        PerfectHead(aligned),  # type: ignore[arg-type]
        None,
        ["cell"],
        torch.device("cpu"),
        "fp32",
        tile=tile,
        overlap=40,
        augment=augment,  # type: ignore[arg-type]
    )
    cells = predictor(picture)
    assert len(cells) == 16
    found = masks_of(cells)
    assert min(max(iou(mask, other) for other in found) for mask in truth) >= 0.97
