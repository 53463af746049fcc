"""The split of pictures and the sampling of rare ones."""

from __future__ import annotations

import numpy as np
import pytest

from maskrcnn.data.split import repeat_factors, train_val_split
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
