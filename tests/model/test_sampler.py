"""Properties of the balanced sampler."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from maskrcnn.model.sampler import sample_balanced


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2)), max_size=100),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_counts_and_membership(examples: list[tuple[int, int]], count: int, fraction: float) -> None:
    """Of every image as many as it alone would give, in whatever order the examples come."""
    image = torch.tensor([i for i, _ in examples], dtype=torch.int64)
    labels = torch.tensor([v for _, v in examples], dtype=torch.int64)
    positive, negative = sample_balanced(labels, image, 5, count, fraction)  # image 4 has no examples
    for i in range(5):
        positives, negatives = examples.count((i, 1)) + examples.count((i, 2)), examples.count((i, 0))
        own_positives = int((image[positive] == i).sum())
        assert own_positives == min(positives, int(count * fraction))
        assert (image[negative] == i).sum() == min(negatives, count - own_positives)
    assert bool((labels[positive] > 0).all())
    assert bool((labels[negative] == 0).all())
    for indices in (positive, negative):
        assert indices.dtype == torch.int64
        assert bool((indices[1:] > indices[:-1]).all())  # ascending, none twice


def test_counts_are_exact_among_many() -> None:
    """Only the examples with small keys are sorted; there are always enough of them."""
    image = torch.arange(4).repeat_interleave(25_000)
    labels = (torch.arange(100_000) % 10 == 0).long()
    labels[25_000:50_000] = 0
    for count in (1, 2, 30, 256):
        for _ in range(20):
            positive, negative = sample_balanced(labels, image, 4, count, 0.5)
            half = count // 2
            assert torch.bincount(image[positive], minlength=4).tolist() == [half, 0, half, half]
            assert torch.bincount(image[negative]).tolist() == [count - half, count, count - half, count - half]


def test_every_example_has_the_same_chance() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([1] * 10 + [0] * 20 + [1] * 5 + [0] * 6)
    image = torch.tensor([0] * 30 + [1] * 11)
    chosen = torch.zeros(41)
    for _ in range(2000):
        for indices in sample_balanced(labels, image, 2, 8, 0.5):
            chosen[indices] += 1
    # 4 of 10 and 4 of 20: binomial standard deviations are 0.011 and 0.009; 4 of 5 and 4 of 6: 0.009 and 0.011
    for examples, chance in ((slice(10), 0.4), (slice(10, 30), 0.2), (slice(30, 35), 0.8), (slice(35, 41), 2 / 3)):
        assert torch.allclose(chosen[examples] / 2000, torch.tensor(chance), atol=0.05)


def test_every_one_of_many_has_the_same_chance() -> None:
    torch.manual_seed(0)
    labels, image = torch.zeros(4000, dtype=torch.int64), torch.arange(2).repeat_interleave(2000)
    chosen = torch.zeros(4000)
    for _ in range(1000):
        chosen[sample_balanced(labels, image, 2, 100, 0.5)[1]] += 1
    assert chosen.sum() == 200_000
    # each with chance 0.05: over all examples, the variance of the number of times is that of binomial draws, 47.5
    assert abs(chosen.var() - 47.5) < 5
    assert abs(chosen[:1000].sum() - 50_000) < 1000


def test_the_seed_decides() -> None:
    labels, image = torch.tensor([1, 0] * 50), torch.zeros(100, dtype=torch.int64)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(torch.cat(sample_balanced(labels, image, 1, 20, 0.5)).tolist())
    assert draws[0] == draws[1] != draws[2]
