"""Training batches in an order that depends on nothing but the seed, the epoch and the position."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.sample import Batch, Sample, collate
from maskrcnn.engine.stop import leave_signals_to_parent
from maskrcnn.errors import InputError


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (picture index, seed of its augmentation) for one epoch.

    Each picture comes ``repeat_factors[i]`` times an epoch on average, rounded down or up (Gupta et al. 2019, LVIS,
    section 5.1), in random order. The factors are scaled by a hair to add up to a whole number, so that all epochs are
    equally long; the last batch may be smaller. With several processes a batch of all of them, ``world_size`` times
    ``batch_size`` pictures of the same order, is dealt out picture by picture; a last one with fewer pictures than
    processes is filled up with the epoch's first. Since everything follows from ``(seed, epoch)``, a run that resumes
    inside an epoch skips what it has seen and goes on as if never stopped.
    """

    def __init__(
        self,
        repeat_factors: Sequence[float] | np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        factors = np.asarray(repeat_factors, dtype=np.float64)
        self.draws_per_epoch = max(1, round(float(factors.sum())))
        self.repeat_factors = factors * (self.draws_per_epoch / factors.sum())
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.skip_batches = 0

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        self.epoch, self.skip_batches = epoch, skip_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self._indices(rng))
        seeds = rng.integers(0, 2**62, size=len(order))
        draws = [(int(index), int(seed)) for index, seed in zip(order, seeds, strict=True)]
        joint = self.batch_size * self.world_size
        batches = [draws[i : i + joint] for i in range(0, len(draws), joint)]
        missing = max(0, self.world_size - len(batches[-1]))
        batches[-1] = batches[-1] + list(itertools.islice(itertools.cycle(draws), missing))
        return (batch[self.rank :: self.world_size] for batch in batches[self.skip_batches :])

    def _indices(self, rng: np.random.Generator) -> np.ndarray:
        """Picture indices with their repeats, by systematic sampling: the factors laid end to end on a line, which is
        cut at whole numbers from a random start; the cuts inside a picture's stretch are its repeats."""
        pictures = rng.permutation(len(self.repeat_factors))
        ends = np.concatenate([[0.0], np.cumsum(self.repeat_factors[pictures])])
        ends[-1] = self.draws_per_epoch  # exact, where the sum is off by rounding
        cuts = np.ceil(ends - rng.random()).astype(int)
        return np.repeat(pictures, np.diff(cuts))

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-self.draws_per_epoch // (self.batch_size * self.world_size))


class _ErrorsAsItems(Dataset[Sample | InputError]):
    """A data set whose :class:`InputError` are items: PyTorch puts the traceback of a worker process into the message
    of what it raised."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> Sample | InputError:
        try:
            return self.dataset[item]
        except InputError as error:
            return error


def _collate(items: Sequence[Sample | InputError]) -> Batch | InputError:
    errors = [item for item in items if isinstance(item, InputError)]
    return errors[0] if errors else collate([item for item in items if isinstance(item, Sample)])


def batches(loader: DataLoader[Batch | InputError], accumulate: int) -> Iterator[list[Batch]]:
    """``accumulate`` batches of a loader at a time, the last time those that are left; raises InputError for a picture
    that cannot be read, in whichever process."""
    iterator = iter(loader)
    while group := list(itertools.islice(iterator, accumulate)):
        for batch in group:
            if isinstance(batch, InputError):
                raise batch
        yield [batch for batch in group if isinstance(batch, Batch)]


def build_loader(
    dataset: Dataset[Sample], sampler: EpochSampler, workers: int, device: torch.device
) -> DataLoader[Batch | InputError]:
    """What :func:`batches` gives to training, prepared ahead.

    Workers are started anew each epoch, and what they decode is gone with them: so the pictures are decoded before, and
    the workers, forked where that is possible, share them.
    """
    if workers and isinstance(dataset, CellDataset):
        dataset.preload()
    return DataLoader(
        _ErrorsAsItems(dataset),  # type: ignore[arg-type] # samples in, batches out
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )
