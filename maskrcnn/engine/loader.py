"""Loading of training batches, in an order that depends only on the seed and the epoch."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.sample import Batch, Sample, collate
from maskrcnn.engine.stop import leave_signals_to_parent
from maskrcnn.errors import InputError


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batch sampler with repeat factors that is reproducible across resumed runs and processes.

    Yields batches of (picture index, seed of its augmentation) for one epoch. Picture i is drawn ``repeat_factors[i]``
    times per epoch on average, rounded down or up (Gupta et al. 2019, LVIS, section 5.1), in random order. The factors
    are scaled slightly so that their sum is a whole number and all epochs have the same length; the last batch may be
    smaller. With several processes, ``world_size`` times ``batch_size`` consecutive pictures are distributed one by
    one; if the last such group has fewer pictures than processes, it is padded with the first pictures of the epoch.
    Everything is determined by ``(seed, epoch)``, so that a run that is resumed within an epoch skips the batches that
    are done and continues as if it had not been stopped.

    Args:
        repeat_factors: float [N].
        batch_size: pictures per batch of each process.
        seed: seed of the order and the augmentation.
        rank, world_size: number of this process, and of all processes.
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
        global_size = self.batch_size * self.world_size
        batches = [draws[i : i + global_size] for i in range(0, len(draws), global_size)]
        missing = max(0, self.world_size - len(batches[-1]))
        batches[-1] = batches[-1] + list(itertools.islice(itertools.cycle(draws), missing))
        return (batch[self.rank :: self.world_size] for batch in batches[self.skip_batches :])

    def _indices(self, rng: np.random.Generator) -> np.ndarray:
        """Picture indices with repeats, by systematic sampling: the cumulative sum of the factors divides a line into
        intervals; a picture is repeated once per grid point, at distance 1 with a random start, in its interval."""
        pictures = rng.permutation(len(self.repeat_factors))
        ends = np.concatenate([[0.0], np.cumsum(self.repeat_factors[pictures])])
        ends[-1] = self.draws_per_epoch  # remove rounding errors of the sum
        cuts = np.ceil(ends - rng.random()).astype(int)
        return np.repeat(pictures, np.diff(cuts))

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return -(-self.draws_per_epoch // (self.batch_size * self.world_size))


class _ErrorsAsItems(Dataset[Sample | InputError]):
    """A data set that returns :class:`InputError` as items: PyTorch would add the worker's traceback to the message of
    an exception."""

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


def batches(loader: DataLoader[Batch | InputError], accumulate: int) -> Generator[list[Batch]]:
    """Group the batches of a loader by ``accumulate``, the last group may be smaller; raises InputError for a picture
    that cannot be read, also if that happened in a worker.

    Closing the generator ends the workers.
    """
    iterator = iter(loader)
    try:
        while group := list(itertools.islice(iterator, accumulate)):
            for batch in group:
                if isinstance(batch, InputError):
                    raise batch
            yield [batch for batch in group if isinstance(batch, Batch)]
    finally:
        del iterator  # its destructor ends the workers; a traceback could keep it for longer


def build_loader(
    dataset: Dataset[Sample], sampler: EpochSampler, workers: int, device: torch.device
) -> DataLoader[Batch | InputError]:
    """The loader of training batches, for :func:`batches`.

    Workers are restarted each epoch and lose what they decoded. Therefore pictures are decoded first, and the workers,
    which are forked where possible, share them.
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
