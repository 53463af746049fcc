"""Scores of label images: cases scored by hand, and brute force over dense masks and all matchings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskrcnn.evaluation.dense import (
    ABOVE_HALF,
    PER_PICTURE,
    POOLED,
    THRESHOLDS,
    Overlaps,
    count,
    dense_metrics,
    match,
    overlaps,
    precision_by_threshold,
    summarize,
)


def _picture(seed: int, cells: int = 6) -> np.ndarray:
    """A small label image of rectangles with gaps in the values, int [12, 14]."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((12, 14), np.int32)
    for value in rng.permutation(np.arange(1, 3 * cells))[: rng.integers(0, cells + 1)]:
        y, x = rng.integers(0, 10, 2)
        h, w = rng.integers(1, 7, 2)
        labels[y : y + h, x : x + w] = value
    return labels


def _pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A truth and a prediction that is near it: shifted, with a few cells of its own."""
    rng = np.random.default_rng([seed, 1])
    truth, other = _picture(seed), _picture(seed + 50_000)
    predicted = np.roll(truth, rng.integers(-1, 2, 2), (0, 1)) + 40 * (truth > 0)
    return truth, np.where(rng.random(truth.shape) < rng.choice([0, 0.1, 0.5]), other, predicted)


def _iou_matrix(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """From the definition, with a dense mask for each cell."""
    true_masks = [truth == value for value in np.unique(truth) if value]
    found_masks = [predicted == value for value in np.unique(predicted) if value]
    table = [[(a & b).sum() / (a | b).sum() for b in found_masks] for a in true_masks]
    return np.array(table).reshape(len(true_masks), len(found_masks))


def _best_matching(iou: np.ndarray, threshold: float) -> tuple[int, float]:
    """The most pairs of at least ``threshold``, then the largest sum of IoU, by trying all of them."""
    if iou.shape[0] == 0:
        return 0, 0.0
    rest = np.delete(iou, 0, axis=0)
    best = _best_matching(rest, threshold)
    for column in np.flatnonzero(iou[0] >= threshold):
        pairs, total = _best_matching(
            np.concatenate([rest[:, :column], 0 * rest[:, :1], rest[:, column + 1 :]], 1), threshold
        )
        best = max(best, (pairs + 1, total + iou[0, column]))
    return best


@given(st.integers(0, 10_000))
def test_overlaps_are_those_of_dense_masks(seed: int) -> None:
    truth, predicted = _pair(seed)
    expected = _iou_matrix(truth, predicted)
    pairs = overlaps(truth, predicted)
    assert (pairs.num_truth, pairs.num_predicted) == expected.shape
    table = np.zeros_like(expected)
    rows = np.searchsorted([value for value in np.unique(truth) if value], pairs.truth)
    columns = np.searchsorted([value for value in np.unique(predicted) if value], pairs.predicted)
    table[rows, columns] = pairs.iou
    np.testing.assert_array_equal(table, expected)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.2, 0.4, *THRESHOLDS, ABOVE_HALF]))
def test_matching_is_the_best_of_all(seed: int, threshold: float) -> None:
    """Low thresholds too, where a cell has several partners to choose from."""
    truth, predicted = _pair(seed)
    matched = match(overlaps(truth, predicted), threshold)
    pairs, total = _best_matching(_iou_matrix(truth, predicted), threshold)
    assert len(matched) == pairs
    assert matched.sum() == pytest.approx(total, abs=1e-12)


def test_more_pairs_take_precedence_over_a_larger_iou() -> None:
    """Taking the 0.9 would leave the other two without a partner."""
    pairs = Overlaps(np.array([1, 1, 2]), np.array([1, 2, 1]), np.array([0.9, 0.55, 0.6]), 2, 2)
    assert sorted(match(pairs, 0.5)) == [0.55, 0.6]
    assert match(pairs, 0.7).tolist() == [0.9]


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=4))
def test_scores_from_their_definitions(seeds: list[int]) -> None:
    pictures = [_pair(seed) for seed in seeds]
    scores = summarize([count(*picture) for picture in pictures])
    tables = [_iou_matrix(*picture) for picture in pictures]
    if not sum(len(table) for table in tables):
        assert scores == dict.fromkeys((*POOLED, *PER_PICTURE), -1)
        return

    def precision(tables: list[np.ndarray], threshold: float) -> float:
        tp = sum(_best_matching(table, threshold)[0] for table in tables)
        fn = sum(table.shape[0] for table in tables) - tp
        fp = sum(table.shape[1] for table in tables) - tp
        return tp / (tp + fp + fn)

    def quality(tables: list[np.ndarray]) -> float:
        """Kirillov et al. 2019, eq. 1."""
        iou = np.concatenate([table[table > 0.5] for table in tables])
        fn = sum(table.shape[0] for table in tables) - len(iou)
        fp = sum(table.shape[1] for table in tables) - len(iou)
        return iou.sum() / (len(iou) + fp / 2 + fn / 2)

    seen = [table for table in tables if sum(table.shape)]
    grid = [0.5 + 0.05 * step for step in range(9)]
    grid = [round(threshold, 2) for threshold in grid]
    iou = np.concatenate([table[table > 0.5] for table in tables])
    assert scores["AP50"] == pytest.approx(precision(tables, 0.5))
    assert scores["AP75"] == pytest.approx(precision(tables, 0.75))
    assert scores["AP"] == pytest.approx(np.mean([precision(tables, t) for t in grid]))
    assert scores["AP50_pictures"] == pytest.approx(np.mean([precision([table], 0.5) for table in seen]))
    assert scores["AP75_pictures"] == pytest.approx(np.mean([precision([table], 0.75) for table in seen]))
    assert scores["AP_pictures"] == pytest.approx(np.mean([precision([one], t) for one in seen for t in grid]))
    assert scores["PQ"] == pytest.approx(quality(tables))
    assert scores["PQ_pictures"] == pytest.approx(np.mean([quality([table]) for table in tables if table.shape[0]]))
    assert scores["SQ"] == pytest.approx(iou.mean() if len(iou) else 0)
    assert scores["PQ"] == pytest.approx(scores["DQ"] * scores["SQ"])


def _strip(*cells: tuple[int, int]) -> np.ndarray:
    """A picture of one row: cells from start to stop."""
    labels = np.zeros((1, 40), np.int32)
    for value, (start, stop) in enumerate(cells, start=1):
        labels[0, start:stop] = value
    return labels


def test_a_case_scored_by_hand() -> None:
    """Three true and three predicted cells: one hit of IoU 8/10, one of 6/10, one missed and one invented."""
    truth = _strip((0, 10), (10, 20), (30, 35))
    predicted = _strip((0, 8), (14, 20), (20, 25))
    scores = summarize([count(truth, predicted)])
    assert scores["AP50"] == pytest.approx(2 / 4)
    assert scores["AP75"] == pytest.approx(1 / 5)
    # two hits at 0.5, 0.55 and 0.6; one at 0.65, 0.7, 0.75 and 0.8; none at 0.85 and 0.9
    assert scores["AP"] == pytest.approx((3 * 2 / 4 + 4 * 1 / 5) / 9)
    assert scores["DQ"] == pytest.approx(2 / 3)
    assert scores["SQ"] == pytest.approx(0.7)
    assert scores["PQ"] == pytest.approx(1.4 / 3)


def test_an_iou_of_one_half_counts_for_ap_and_not_for_pq() -> None:
    scores = summarize([count(_strip((0, 10)), _strip((0, 5)))])
    assert scores["AP50"] == 1
    assert scores["PQ"] == scores["SQ"] == 0


def test_pooled_and_per_picture() -> None:
    """Nine cells found of nine in one picture, none of one in another, and a false one where there is no true cell."""
    full = _strip(*((4 * i, 4 * i + 3) for i in range(9)))
    pictures = [(full, full), (_strip((0, 5)), _strip()), (_strip(), _strip((0, 5))), (_strip(), _strip())]
    scores = summarize([count(*picture) for picture in pictures])
    assert scores["AP50"] == pytest.approx(9 / 11)
    assert scores["AP50_pictures"] == pytest.approx(1 / 3)  # the last picture has no cell of either kind
    assert scores["PQ"] == pytest.approx(9 / 10)
    assert scores["PQ_pictures"] == pytest.approx(1 / 2)  # the third has no true cell


def test_true_cells_that_overlap_are_in_different_planes() -> None:
    """One predicted cell fits two true ones; it counts for the better."""
    truth = np.stack([_strip((0, 10)), 2 * _strip((1, 10))])
    scores = summarize([count(truth, _strip((0, 10)))])
    assert scores["SQ"] == 1
    assert scores["AP50"] == 1 / 2


def test_the_order_and_values_of_cells_do_not_matter() -> None:
    truth, predicted = _pair(7)
    renamed = np.random.default_rng(0).permutation(np.arange(1, 200))
    table = np.concatenate([[0], renamed])
    assert summarize([count(truth, predicted)]) == pytest.approx(summarize([count(table[truth], table[predicted])]))


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_all_score_thresholds_in_one_pass(seed: int) -> None:
    """Pictures of two classes whose cells overlap each other, some with equal scores."""
    rng = np.random.default_rng(seed)
    true: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for rows in (true, found):
        for number in range(24):
            mask = np.zeros((30, 30), np.uint8, order="F")
            y, x = rng.integers(0, 24, 2)
            mask[y : y + rng.integers(3, 9), x : x + rng.integers(3, 9)] = 1
            rle = coco_mask.encode(mask)
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            ids = {"image_id": 1 + number % 3, "category_id": 1 + number // 3 % 2}
            rows.append({**ids, "segmentation": segmentation, "score": float(np.float32(rng.integers(0, 11) / 10))})
    images = [{"id": k, "height": 30, "width": 30} for k in (1, 2, 3)]
    truth = {"images": images, "annotations": true, "categories": [{"id": 1}, {"id": 2}]}
    values = (0.0, 0.3, 0.5, 0.7, 1.0)
    for k in (1, 2):
        expected = [dense_metrics(truth, found, value)[f"AP/class{k}"] for value in values]
        assert precision_by_threshold(truth, found, k, values) == expected


def test_thousands_of_cells_need_no_square_table() -> None:
    """20,000 cells of 2x2 pixels: a table of all pairs would take 3 GB."""
    side = 142
    labels = np.kron(np.arange(1, side * side + 1).reshape(side, side), np.ones((2, 2), int))
    pairs = overlaps(labels, labels)
    assert len(pairs.iou) == side * side
    assert summarize([count(labels, labels)])["AP"] == 1


def test_thousands_of_cells_with_several_candidates_need_no_square_table() -> None:
    """20,000 cells that two annotators outlined: each prediction fits two, and a table of all pairs would take 6 GB."""
    side = 142
    labels = np.kron(np.arange(1, side * side + 1).reshape(side, side), np.ones((2, 2), int))
    twice = np.stack([labels, labels + (labels > 0) * side * side])
    assert summarize([count(twice, labels)])["AP"] == 1 / 2


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [(np.zeros((3, 4), int), np.zeros((3, 5), int), "shape"), (np.full((3, 4), -1), np.zeros((3, 4), int), "negative")],
)
def test_arguments_that_do_not_fit(truth: np.ndarray, predicted: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlaps(truth, predicted)
