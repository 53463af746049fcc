"""Properties of the balanced sampler."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from maskrcnn.model.sampler import sample_balanced


@given(st.lists(st.integers(-1, 2), max_size=60), st.integers(0, 40), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
@settings(max_examples=200, deadline=None)
def test_counts_and_membership(values: list[int], count: int, fraction: float) -> None:
    labels = torch.tensor(values, dtype=torch.int64)
    positive, negative = sample_balanced(labels, count, fraction)
    positives, negatives = sum(v > 0 for v in values), sum(v == 0 for v in values)
    assert len(positive) == min(positives, int(count * fraction))
    assert len(negative) == min(negatives, count - len(positive))
    assert bool((labels[positive] > 0).all())
    assert bool((labels[negative] == 0).all())
    for indices in (positive, negative):
        assert indices.dtype == torch.int64
        assert bool((indices[1:] > indices[:-1]).all())  # ascending, none twice


def test_every_example_has_the_same_chance() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([1] * 10 + [0] * 20)
    chosen = torch.zeros(30)
    for _ in range(2000):
        for indices in sample_balanced(labels, 8, 0.5):
            chosen[indices] += 1
    # 4 of 10 and 4 of 20: binomial standard deviations are 0.011 and 0.009
    assert torch.allclose(chosen[:10] / 2000, torch.tensor(0.4), atol=0.05)
    assert torch.allclose(chosen[10:] / 2000, torch.tensor(0.2), atol=0.05)


def test_the_seed_decides() -> None:
    labels = torch.tensor([1, 0] * 50)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(torch.cat(sample_balanced(labels, 20, 0.5)).tolist())
    assert draws[0] == draws[1] != draws[2]
