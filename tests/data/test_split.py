"""The split of pictures and the sampling of rare ones."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.data.split import repeat_factors, split_changes, train_val_split
from maskrcnn.errors import InputError


def counts(seed: int = 0, pictures: int = 200) -> np.ndarray:
    """Four classes, found in about 80, 30, 5 and 2 % of the pictures; some pictures have none."""
    rng = np.random.default_rng(seed)
    return (rng.random((pictures, 4)) < [0.8, 0.3, 0.05, 0.02]) * rng.integers(1, 30, (pictures, 4))


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_on_both_sides_in_proportion(seed: int) -> None:
    has = counts(seed) > 0
    train, val = train_val_split(counts(seed), 0.2, seed)
    assert sorted([*train, *val]) == list(range(200))
    assert 36 <= len(val) <= 44
    for k in range(4):
        if has[:, k].sum() >= 2:
            assert has[train, k].any()
            assert has[val, k].any()
        assert abs(has[val, k].sum() - 0.2 * has[:, k].sum()) <= 2


def test_the_seed_decides() -> None:
    splits = [train_val_split(counts(), 0.1, seed)[1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("pictures", [2, 3, 5])
def test_small_sets_have_both_sides(pictures: int) -> None:
    train, val = train_val_split(np.ones((pictures, 1), np.int64), 0.1, 0)
    assert len(train) >= 1
    assert len(val) >= 1


def test_one_picture_cannot_be_split() -> None:
    with pytest.raises(InputError, match="1 picture"):
        train_val_split(np.ones((1, 1), np.int64), 0.1, 0)


def test_repeat_factors_by_hand() -> None:
    """A class in 1 of 100 pictures at threshold 0.04: shown sqrt(0.04 / 0.01) = 2 times; the others once."""
    table = np.zeros((100, 3), np.int64)
    table[:, 0] = 5
    table[7, 1] = 2
    factors = repeat_factors(table, 0.04)
    assert factors[7] == pytest.approx(2)
    assert (np.delete(factors, 7) == 1).all()
    assert (repeat_factors(table, 0.0) == 1).all()


@pytest.mark.parametrize(
    ("seed", "fraction", "expected"),
    [
        (0, 0.1, [0, 7, 8, 28, 38, 44, 57, 70, 86, 89, 94, 119, 148, 161, 167, 168, 169, 175, 183, 191, 197]),
        (1, 0.1, [2, 20, 22, 26, 28, 30, 63, 64, 72, 73, 76, 80, 81, 89, 94, 134, 168, 170, 174, 175, 192]),
    ],
)
def test_without_groups_the_split_is_that_of_earlier_versions(seed: int, fraction: float, expected: list[int]) -> None:
    """Runs are compared, and resumed, on the validation pictures that they had."""
    assert train_val_split(counts(seed), fraction, seed)[1].tolist() == expected
    assert train_val_split(np.ones((5, 1), np.int64), 0.1, 0)[1].tolist() == [0]


def patients(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three sources of 200, 120 and 40 pictures: single pictures, groups of 1 to 9, groups of 2 to 8."""
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(200), 1000 + np.arange(120) // 5, 2000 + np.arange(40) // 4])
    groups[200:320] = 1000 + np.sort(rng.integers(0, 24, 120))
    groups[320:] = 2000 + np.sort(rng.integers(0, 9, 40))
    table = np.zeros((360, 3), np.int64)
    table[:200, 0], table[200:320, 1], table[320:, 2] = 9, 30, 50
    order = rng.permutation(360)
    return table[order], groups[order] * 7 - 3000


@pytest.mark.parametrize("seed", range(8))
def test_groups_stay_on_one_side_and_sources_get_their_share(seed: int) -> None:
    table, groups = patients(seed)
    train, val = train_val_split(table, 0.1, seed, groups)
    assert sorted([*train, *val]) == list(range(360))
    assert not set(groups[train]) & set(groups[val])
    has = (table > 0)[val].sum(0)
    assert abs(has[0] - 20) <= 1
    assert abs(has[1] - 12) <= 3
    assert 1 <= has[2] <= 7


def test_the_seed_decides_about_groups() -> None:
    table, groups = patients(0)
    splits = [set(groups[train_val_split(table, 0.1, seed, groups)[1]]) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_class_of_two_groups_is_on_both_sides() -> None:
    """10 % of 40 pictures are fewer than either group of the second class has."""
    table = np.zeros((40, 2), np.int64)
    table[:20, 0], table[20:, 1] = 1, 1
    groups = np.concatenate([np.arange(20), np.repeat([20, 21], [12, 8])])
    train, val = train_val_split(table, 0.1, 0, groups)
    assert set(groups[val]) >= {21}
    assert set(groups[train]) >= {20}
    assert table[val, 0].sum() == 2


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(InputError, match="5 pictures of one group"):
        train_val_split(np.ones((5, 1), np.int64), 0.1, 0, np.full(5, 3))


def test_two_groups_are_split() -> None:
    train, val = train_val_split(np.ones((5, 1), np.int64), 0.1, 0, np.array([1, 1, 0, 1, 0]))
    assert [train.tolist(), val.tolist()] in ([[0, 1, 3], [2, 4]], [[2, 4], [0, 1, 3]])


def test_repeat_factors_balance_sources() -> None:
    """At threshold 1 a source with the share f of the pictures has the share sqrt(f) / sum of sqrt(f) of the draws."""
    table = np.zeros((100, 2), np.int64)
    table[:64, 0], table[64:, 1] = 1, 1
    factors = repeat_factors(table, 1.0)
    assert factors[:64].sum() / factors.sum() == pytest.approx(0.8 / (0.8 + 0.6))


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        (["b", "a", "c"], ["e", "d"], None),
        (["a", "b", "c"], ["d"], "1 gone (e)"),
        (["a", "b", "c", "f"], ["d", "e"], "1 new (f)"),
        (
            ["a", "b", "d"],
            ["c", "e"],
            "1 moved from training to validation (c), 1 moved from validation to training (d)",
        ),
        (
            ["w", "z", "y", "x", "e"],
            ["c"],
            "3 gone (a, b, d), 4 new (w, x, y, ...), "
            "1 moved from training to validation (c), 1 moved from validation to training (e)",
        ),
    ],
)
def test_what_changed_since_a_split(train: list[str], val: list[str], expected: str | None) -> None:
    assert split_changes((["a", "b", "c"], ["d", "e"]), (train, val)) == expected
