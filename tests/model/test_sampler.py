"""Properties of the balanced sampler."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from maskrcnn.model.sampler import sample_balanced


@given(
    st.lists(st.lists(st.integers(-1, 2), min_size=40, max_size=40), min_size=1, max_size=4),
    st.integers(0, 50),
    st.integers(0, 50),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_counts_and_membership(rows: list[list[int]], examples: int, count: int, fraction: float) -> None:
    labels = torch.tensor(rows, dtype=torch.int64)[:, :examples]
    index, sampled = sample_balanced(labels, count, fraction)
    assert index.shape == sampled.shape
    assert index.dtype == torch.int64
    for own_labels, own_index, own_sampled in zip(labels.tolist(), index, sampled, strict=True):
        chosen = own_index[own_sampled].tolist()
        assert len(set(chosen)) == len(chosen)
        found = [own_labels[i] for i in chosen]
        positives = sum(label > 0 for label in own_labels)
        own_positives = min(positives, int(count * fraction))
        assert sum(label > 0 for label in found) == own_positives
        assert found.count(0) == len(found) - own_positives == min(own_labels.count(0), count - own_positives)
        assert all(label == 0 for label in found[own_positives:])  # positives first


def _rows(labels: Tensor, index: Tensor, sampled: Tensor) -> Tensor:
    """How often each example is sampled, float [B, N]."""
    return torch.zeros(labels.shape).scatter_add_(1, index, sampled.float())


def test_counts_are_exact_among_many() -> None:
    labels = (torch.arange(100_000) % 10 == 0).long().view(4, 25_000)
    labels[1] = 0
    for count in (1, 2, 30, 256):
        for _ in range(5):
            chosen = _rows(labels, *sample_balanced(labels, count, 0.5))
            half = count // 2
            assert (chosen * (labels > 0)).sum(1).tolist() == [half, 0, half, half]
            assert (chosen * (labels == 0)).sum(1).tolist() == [count - half, count, count - half, count - half]
            assert chosen.max() == 1


def test_every_example_has_the_same_chance() -> None:
    torch.manual_seed(0)
    labels = torch.full((2, 30), -1)
    labels[0, :10], labels[0, 10:] = 1, 0
    labels[1, :5], labels[1, 5:11] = 1, 0
    chosen = sum(_rows(labels, *sample_balanced(labels, 8, 0.5)) for _ in range(2000))
    # 4 of 10 and 4 of 20: binomial standard deviations are 0.011 and 0.009; 4 of 5 and 4 of 6: 0.009 and 0.011
    cases = ((0, slice(10), 0.4), (0, slice(10, 30), 0.2), (1, slice(5), 0.8), (1, slice(5, 11), 2 / 3))
    for image, examples, chance in (*cases, (1, slice(11, 30), 0.0)):
        assert torch.allclose(chosen[image, examples] / 2000, torch.tensor(chance), atol=0.05)


def test_every_one_of_many_has_the_same_chance() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(2, 2000, dtype=torch.int64)
    chosen = sum(_rows(labels, *sample_balanced(labels, 100, 0.5)) for _ in range(1000))
    assert chosen.sum(1).tolist() == [100_000, 100_000]
    # each with chance 0.05: over all examples, the variance of the number of times is that of binomial draws, 47.5
    assert abs(chosen.var() - 47.5) < 5
    assert abs(chosen[:, :500].sum() - 50_000) < 1000
    # examples are drawn independently of one another: those of both images are not the same
    assert abs(torch.corrcoef(chosen)[0, 1]) < 0.1


def test_the_seed_decides() -> None:
    labels = torch.tensor([[1, 0] * 50])
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(_rows(labels, *sample_balanced(labels, 20, 0.5)).tolist())
    assert draws[0] == draws[1] != draws[2]
