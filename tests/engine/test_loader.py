"""Training batches: functions of the seed and the epoch alone, whichever process prepares them and what it has kept."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.sample import Sample
from maskrcnn.data.transforms import RandomCrop
from maskrcnn.engine.loader import EpochSampler, batches, build_loader
from maskrcnn.errors import InputError
from tests.conftest import ROOT


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


def _batches(dataset: Hw3Folder, workers: int) -> list[tuple]:
    sampler = EpochSampler(np.ones(len(dataset)), batch_size=2, seed=1)
    loader = build_loader(dataset, sampler, workers, torch.device("cpu"))
    return [
        (batch.names, batch.images.tolist(), [labels.planes.tolist() for labels in batch.labels])
        for (batch,) in batches(loader, accumulate=1)
    ]


def _cropped(data: Path) -> Hw3Folder:
    return Hw3Folder(data, transform=RandomCrop(64, scale=(0.8, 1.25)))


def test_workers_give_the_same_batches_and_decode_nothing(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _batches(_cropped(tiny_dataset), workers=0)
    dataset = _cropped(tiny_dataset)
    dataset.preload()

    def refuse(self: Hw3Folder, index: int) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Hw3Folder, "read_image", refuse)
    monkeypatch.setattr(Hw3Folder, "read_labels", refuse)
    assert _batches(dataset, workers=1) == expected


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_does_not_fit_into_the_cache_is_decoded_again(tiny_dataset: Path, share: float) -> None:
    whole = _cropped(tiny_dataset)
    expected = _batches(whole, workers=0)
    assert not whole.cache.full
    assert len(whole.cache.images) == len(whole.cache.labels) == len(whole)
    planes = sum(labels.planes.nbytes for labels in whole.cache.labels.values())
    assert whole.cache.size == planes + sum(image.nbytes for image in whole.cache.images.values())
    small = _cropped(tiny_dataset)
    small.cache.limit = share * whole.cache.size
    assert _batches(small, workers=0) == expected
    small.preload()
    assert _batches(small.subset(range(len(small)), small.transform), workers=0) == expected
    assert small.cache.full
    assert share * whole.cache.size * 0.5 <= small.cache.size <= small.cache.limit


def test_samples_have_int32_planes(tiny_dataset: Path) -> None:
    dataset = _cropped(tiny_dataset)
    for sample in (dataset[0], dataset[0, 5]):
        assert sample.labels.planes.dtype == torch.int32
    assert dataset.cache.labels[dataset.names[0]].planes.dtype == torch.int16


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_read_is_one_line(tiny_dataset: Path, workers: int) -> None:
    dataset = _cropped(tiny_dataset)

    def refuse(sample: Sample, rng: np.random.Generator) -> Sample:
        raise InputError(f"{sample.name}: damaged")

    dataset.transform = refuse
    with pytest.raises(InputError, match=r"^\S+: damaged$") as caught:
        _batches(dataset, workers)
    assert not multiprocessing.active_children(), caught.traceback  # which does not keep them


def test_workers_end_where_training_stops(tiny_dataset: Path) -> None:
    loader = build_loader(
        _cropped(tiny_dataset), EpochSampler(np.ones(4), batch_size=1, seed=1), 1, torch.device("cpu")
    )
    with closing(batches(loader, accumulate=1)) as groups:
        next(groups)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def test_workers_do_not_keep_a_process_that_ends() -> None:
    """Python sends SIGTERM to the workers that it still has, and waits for them."""
    script = """
from torch.utils.data import DataLoader
from maskrcnn.engine import stop
stop.GRACE_SECONDS = 1
batches = iter(DataLoader(range(100), num_workers=1, worker_init_fn=stop.leave_signals_to_parent))
next(batches)
import builtins
builtins.batches = batches
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=ROOT)
