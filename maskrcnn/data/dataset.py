"""What all data sets of cells share: samples by index, with or without augmentation, and subsets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from maskrcnn import distributed
from maskrcnn.data.picture import Picture, picture_of
from maskrcnn.data.sample import Sample
from maskrcnn.structures import InstanceLabels

T = TypeVar("T")
Transform = Callable[[Sample, np.random.Generator], Sample]


@dataclass
class Cache:
    """What a data set and its subsets have decoded, up to ``limit`` bytes.

    When it is full, the other pictures are decoded each time they are drawn: in random order no other choice of what to
    keep would be better.

    Attributes:
        limit: bytes, of pixels and planes.
        held: bytes that are in use.
        full: whether something was turned away.
        images: uint8 [H, W, 3], by :attr:`CellDataset.cache_prefix` and name.
        labels: with planes as :func:`_compact` gives them.
    """

    limit: float = 8e9
    held: int = 0
    full: bool = False
    images: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, InstanceLabels] = field(default_factory=dict)

    def takes(self, tensor: Tensor) -> bool:
        """Whether there is room for the tensor; counts it then."""
        if self.held + tensor.nbytes > self.limit:
            self.full = True
            return False
        self.held += tensor.nbytes
        return True


class CellDataset(Dataset[Sample]):
    """Pictures with labelled cells; each is decoded once and kept as uint8 pixels and compact planes (:class:`Cache`).

    ``dataset[i]`` is the picture as it is, ``dataset[i, seed]`` the picture after ``transform`` with a random generator
    of that seed: what a training step sees depends on the index and the seed alone, whichever process prepares it.

    Subclasses give ``names``, ``image_ids``, ``sources`` and ``num_classes``, and implement :meth:`read_image` and
    :meth:`read_labels`.

    Attributes:
        names: one per picture, unique.
        image_ids: one per picture, for COCO files.
        sources: one per picture: the collection that it comes from, by which scores can be told apart.
        num_classes: K; classes are 1..K.
        transform: for ``dataset[i, seed]``.
        cache_prefix: put before a name in the cache's keys, where several data sets share one cache.
    """

    names: list[str]
    image_ids: list[int]
    sources: list[str]
    num_classes: int
    transform: Transform | None = None
    cache_prefix: str = ""

    def __init__(self) -> None:
        self.cache = Cache()

    def read_image(self, index: int) -> Tensor:
        """uint8 [H, W, 3]."""
        raise NotImplementedError

    def read_labels(self, index: int) -> InstanceLabels:
        """The cells, int32 planes."""
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """Names of classes 1..K."""
        return [f"class{k}" for k in range(1, self.num_classes + 1)]

    @property
    def category_ids(self) -> list[int]:
        """The ids that the data's own files have for classes 1..K, for COCO results."""
        return list(range(1, self.num_classes + 1))

    def file_name(self, index: int) -> str:
        """The picture's file, relative to the folder of the pictures."""
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index, seed = item if isinstance(item, tuple) else (item, None)
        # the planes stay compact until the transform has cut out what it needs
        sample = Sample(self._image(index), self._compact_labels(index), self.names[index], self.image_ids[index])
        if seed is not None and self.transform is not None:
            sample = self.transform(sample, np.random.default_rng(seed))
        return replace(sample, labels=_with_type(sample.labels, torch.int32))

    def labels(self, index: int) -> InstanceLabels:
        """The cells of one picture, which need not be decoded for it."""
        return _with_type(self._compact_labels(index), torch.int32)

    def picture(self, index: int) -> Picture:
        """One picture as a predictor takes it; its intensities are stretched already."""
        return picture_of(self._image(index).numpy(), None, self.names[index])

    def preload(self) -> None:
        """Decode the pictures that the cache has room for; processes forked afterwards share their memory."""
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(self._image, range(len(self))):
                if self.cache.full:
                    pool.shutdown(cancel_futures=True)
                    return

    def _image(self, index: int) -> Tensor:
        key = self.cache_prefix + self.names[index]
        image = self.cache.images.get(key)
        if image is None:
            image = self.read_image(index)
            if self.cache.takes(image):
                self.cache.images[key] = image
        return image

    def _compact_labels(self, index: int) -> InstanceLabels:
        key = self.cache_prefix + self.names[index]
        labels = self.cache.labels.get(key)
        if labels is None:
            labels = _compact(self.read_labels(index))
            if self.cache.takes(labels.planes):
                self.cache.labels[key] = labels
        return labels

    def class_counts(self) -> np.ndarray:
        """int64 [pictures, K]: cells of each class in each picture. Reads every label file (once)."""
        counts = np.zeros((len(self), self.num_classes), dtype=np.int64)
        with ThreadPoolExecutor() as pool:
            all_labels = label_progress(pool.map(self.labels, range(len(self))), len(self))
            for index, labels in enumerate(all_labels):
                counts[index] = np.bincount(labels.classes.numpy(), minlength=self.num_classes + 1)[1:]
        return counts

    def subset(self, indices: Sequence[int] | np.ndarray, transform: Transform | None = None) -> Self:
        """The pictures at ``indices``, with another transform; what is decoded is shared."""
        chosen = copy.copy(self)
        chosen.names = [self.names[i] for i in indices]
        chosen.image_ids = [self.image_ids[i] for i in indices]
        chosen.sources = [self.sources[i] for i in indices]
        chosen.transform = transform
        return chosen


def label_progress(items: Iterable[T], count: int) -> Iterable[T]:
    """``items`` with a bar on the terminal, where going through the labels of ``count`` pictures takes a while."""
    hidden = not distributed.is_main()
    bar: Iterable[T] = tqdm(items, "labels", count, unit="picture", leave=False, delay=2, disable=hidden)
    return bar


def _compact(labels: InstanceLabels) -> InstanceLabels:
    """The same labels with planes of int16 where the ids allow it: a data set is kept in memory whole."""
    if labels.planes.numel() and int(labels.planes.max()) > torch.iinfo(torch.int16).max:
        return labels
    return _with_type(labels, torch.int16)


def _with_type(labels: InstanceLabels, dtype: torch.dtype) -> InstanceLabels:
    return replace(labels, planes=labels.planes.to(dtype))
