"""Scores of detections that overlap better ones are lowered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import maskrcnn
from maskrcnn.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn.predict.overlaps import lower_overlapping
from maskrcnn.structures import Detections

SIZE = (300, 200)


def cells(boxes: Sequence[Sequence[float]], scores: Sequence[float], labels: Sequence[int] | None = None) -> Detections:
    """Detections that fill their boxes."""
    count = len(boxes)
    return Detections(
        torch.tensor(boxes).float().reshape(count, 4),
        torch.tensor(scores).float(),
        torch.ones(count, dtype=torch.int64) if labels is None else torch.tensor(labels),
        torch.ones(count, 28, 28),
        SIZE,
    )


def test_half_a_cell_in_the_box_of_a_whole_one_is_lowered() -> None:
    """Boxes of IoU 0.4, which non-maximum suppression keeps both."""
    found = lower_overlapping(cells([[10, 10, 40, 40], [10, 10, 40, 22], [60, 60, 80, 80]], [0.9, 0.8, 0.7]), 0.5)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.4])
    assert found.boxes[2].tolist() == [10, 10, 40, 22]


def test_touching_cells_keep_their_scores() -> None:
    found = cells([[10, 10, 40, 40], [10, 26, 40, 56], [39, 10, 70, 40]], [0.9, 0.8, 0.7])  # 14 of 30 rows; a column
    assert lower_overlapping(found, 0.5).scores.tolist() == found.scores.tolist()


def test_what_overlaps_only_a_lowered_detection_keeps_its_score() -> None:
    """Two cells, and both taken for one with a score between theirs."""
    found = cells([[10, 10, 40, 30], [10, 10, 40, 50], [10, 30, 40, 50]], [0.9, 0.8, 0.7])
    assert lower_overlapping(found, 0.5).scores.tolist() == pytest.approx([0.9, 0.7, 0.4])


def test_a_cell_of_two_classes() -> None:
    found = lower_overlapping(cells([[10, 10, 40, 40], [10, 10, 40, 40]], [0.9, 0.8], [1, 2]), 0.5)
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_overlap(count: int) -> None:
    found = cells([[1, 1, 5, 5]] * count, [0.9] * count)
    assert len(lower_overlapping(found, 0.5)) == count


def test_detections_without_pixels() -> None:
    found = cells([[10, 10, 40, 40], [10.1, 10.1, 10.2, 10.2], [250, 10, 260, 40]], [0.9, 0.8, 0.7])
    assert lower_overlapping(found, 0.5).scores.tolist() == found.scores.tolist()


def test_factor_1_changes_nothing() -> None:
    found = cells([[10, 10, 40, 40], [10, 10, 40, 40]], [0.9, 0.8])
    assert lower_overlapping(found, 1.0) is found


def test_thresholds_that_were_fitted_before_go_with_scores_that_are_not_lowered(tiny_run: Path, tmp_path: Path) -> None:
    contents = load_checkpoint(tiny_run / "best.pt")
    fitted = {"min_score": [0.5] * 4, "mask_threshold": 0.5}
    for thresholds, factor in ((fitted, 1.0), ({**fitted, "overlap_factor": 0.5}, 0.5)):
        save_checkpoint(tmp_path / "best.pt", {**contents, "thresholds": thresholds})
        assert maskrcnn.load(tmp_path / "best.pt", "cpu").overlap_factor == factor


def test_all_pairs_of_many_cells() -> None:
    """Against pycocotools' masks, each compared with every other; more boxes than are compared at once."""
    rng = np.random.default_rng(0)
    count = 700
    corners = rng.uniform(-5, [190, 290], (count, 2))
    sides = rng.uniform(4, 40, (count, 2))
    boxes = torch.tensor(np.concatenate([corners, corners + sides], axis=1)).float()
    scores = torch.tensor(np.sort(rng.uniform(0, 1, count))[::-1].copy()).float()
    found = Detections(boxes, scores, torch.ones(count, dtype=torch.int64), torch.rand(count, 28, 28), SIZE)
    masks = coco_mask.decode(found.to_rle()).reshape(-1, count).astype(np.float32)
    shared, areas = masks.T @ masks, masks.sum(0)
    lowered = np.zeros(count, bool)
    for worse in range(count):
        smaller = np.minimum(areas[worse], areas)
        lowered[worse] = ((shared[worse] > 0.5 * smaller) & ~lowered)[:worse].any()
    assert 50 < lowered.sum() < count - 50
    expected = np.sort(np.where(lowered, 0.25, 1) * scores.numpy())[::-1]
    assert lower_overlapping(found, 0.25).scores.tolist() == pytest.approx(expected.tolist())
