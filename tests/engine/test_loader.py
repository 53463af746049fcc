"""The order of training pictures: a function of the seed and the epoch alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.engine.loader import EpochSampler


def _epoch(sampler: EpochSampler, epoch: int, skip: int = 0) -> list[list[tuple[int, int]]]:
    sampler.set_epoch(epoch, skip)
    return list(sampler)


def test_every_picture_once_an_epoch_when_no_class_is_rare() -> None:
    sampler = EpochSampler(np.ones(7), batch_size=2, seed=3)
    for epoch in range(3):
        batches = _epoch(sampler, epoch)
        assert sorted(index for batch in batches for index, _ in batch) == list(range(7))
        assert [len(batch) for batch in batches] == [2, 2, 2, 1]
        assert len(batches) == len(sampler)


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    factors = np.full(20, 1.3)
    first = EpochSampler(factors, 4, seed=0)
    assert _epoch(first, 0) == _epoch(EpochSampler(factors, 4, seed=0), 0)
    assert _epoch(first, 0) != _epoch(first, 1)
    assert _epoch(first, 0) != _epoch(EpochSampler(factors, 4, seed=1), 0)


def test_a_resumed_epoch_is_the_rest_of_the_whole_one() -> None:
    sampler = EpochSampler(np.full(11, 1.5), 2, seed=5)
    assert _epoch(sampler, 4, skip=3) == _epoch(sampler, 4)[3:]


@given(st.lists(st.floats(1, 5), min_size=1, max_size=30), st.integers(0, 1000))
def test_repeats_are_the_factor_rounded_down_or_up_and_epochs_equally_long(factors: list[float], seed: int) -> None:
    sampler = EpochSampler(factors, 1, seed)
    drawn = [batch[0][0] for batch in _epoch(sampler, seed)]
    assert len(drawn) == len(sampler) == max(1, round(sum(factors)))
    counts = np.bincount(drawn, minlength=len(factors))
    scaled = np.array(factors) * len(sampler) / sum(factors)
    assert (counts >= np.floor(scaled - 1e-9)).all()
    assert (counts <= np.ceil(scaled + 1e-9)).all()


def test_repeats_average_to_the_factor() -> None:
    factors = np.array([1.0, 1.25, 2.5, 1.0, 3.75])
    sampler = EpochSampler(factors, 1, seed=0)
    total = np.zeros(5)
    for epoch in range(2000):
        total += np.bincount([batch[0][0] for batch in _epoch(sampler, epoch)], minlength=5)
    # an epoch has round(9.5) = 10 draws
    assert total / 2000 == pytest.approx(factors * 10 / 9.5, rel=0.08)
