"""Base class of the data sets: samples by index, with or without augmentation, a cache, and subsets."""

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
from maskrcnn.data.arrays import picture_of
from maskrcnn.data.picture import Picture
from maskrcnn.data.sample import Sample
from maskrcnn.data.stored import StoredPicture
from maskrcnn.structures import InstanceLabels

T = TypeVar("T")
Transform = Callable[[Sample, np.random.Generator], Sample]


@dataclass
class Cache:
    """Decoded images and labels that a data set and its subsets share, up to ``limit`` bytes.

    When it is full, further pictures are decoded each time they are drawn: for draws in random order, no eviction
    policy would be better.

    Attributes:
        limit: maximum size of images and planes in bytes.
        size: bytes in use.
        full: whether something was rejected.
        images: uint8 [H, W, 3], by :attr:`CellDataset.cache_prefix` and name.
        labels: with compact planes (:func:`_compact`).
    """

    limit: float = 8e9
    size: int = 0
    full: bool = False
    images: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, InstanceLabels] = field(default_factory=dict)

    def reserve(self, tensor: Tensor) -> bool:
        """Reserve memory for the tensor; False if there is not enough left."""
        if self.size + tensor.nbytes > self.limit:
            self.full = True
            return False
        self.size += tensor.nbytes
        return True


class CellDataset(Dataset[Sample]):
    """Base class of data sets of pictures with labelled cells, which are decoded once and cached (:class:`Cache`).

    ``dataset[i]`` is the unchanged sample, ``dataset[i, seed]`` the sample after ``transform`` with a random generator
    of that seed: training samples depend only on the index and the seed, not on the process that prepares them.

    Subclasses set ``names``, ``image_ids``, ``sources`` and ``num_classes``, and implement :meth:`read_image`,
    :meth:`open_image` and :meth:`read_labels`.

    Attributes:
        names: one per picture, unique.
        image_ids: one per picture, for COCO files.
        sources: one per picture: the collection that it comes from; scores are reported per source.
        num_classes: K; classes are 1..K.
        transform: for ``dataset[i, seed]``.
        cache_prefix: prefix of the cache's keys, where several data sets share one cache.
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
        """Decode one picture: uint8 [H, W, 3]."""
        raise NotImplementedError

    def open_image(self, index: int) -> StoredPicture:
        """Open one picture without decoding it; raises InputError if its file is missing or cannot be opened, or if its
        size or channels are not as expected, as far as the header tells."""
        raise NotImplementedError

    def read_labels(self, index: int) -> InstanceLabels:
        """Decode the ground truth of one picture, with int32 planes."""
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """Names of classes 1..K."""
        return [f"class{k}" for k in range(1, self.num_classes + 1)]

    @property
    def category_ids(self) -> list[int]:
        """The ids of classes 1..K in the data's own files, for COCO results."""
        return list(range(1, self.num_classes + 1))

    def file_name(self, index: int) -> str:
        """The picture's file, relative to the folder of the pictures."""
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index, seed = item if isinstance(item, tuple) else (item, None)
        # planes stay compact until the transform has cropped them
        sample = Sample(self._image(index), self._compact_labels(index), self.names[index], self.image_ids[index])
        if seed is not None and self.transform is not None:
            sample = self.transform(sample, np.random.default_rng(seed))
        return replace(sample, labels=_with_type(sample.labels, torch.int32))

    def labels(self, index: int) -> InstanceLabels:
        """The ground truth of one picture, without decoding the picture."""
        return _with_type(self._compact_labels(index), torch.int32)

    def picture(self, index: int) -> Picture:
        """One picture as input of a predictor; its intensities are stretched already."""
        picture = picture_of(self._image(index).numpy(), None, self.names[index])
        picture.pixel_size = self.open_image(index).pixel_size
        return picture

    def preload(self) -> None:
        """Decode pictures until the cache is full; processes that are forked afterwards share the memory."""
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
            if self.cache.reserve(image):
                self.cache.images[key] = image
        return image

    def _compact_labels(self, index: int) -> InstanceLabels:
        key = self.cache_prefix + self.names[index]
        labels = self.cache.labels.get(key)
        if labels is None:
            labels = _compact(self.read_labels(index))
            if self.cache.reserve(labels.planes):
                self.cache.labels[key] = labels
        return labels

    def class_counts(self) -> np.ndarray:
        """Number of cells per picture and class, int64 [pictures, K]. Reads every label file (once)."""
        counts = np.zeros((len(self), self.num_classes), dtype=np.int64)
        with ThreadPoolExecutor() as pool:
            all_labels = label_progress(pool.map(self.labels, range(len(self))), len(self))
            for index, labels in enumerate(all_labels):
                counts[index] = np.bincount(labels.classes.numpy(), minlength=self.num_classes + 1)[1:]
        return counts

    def subset(self, indices: Sequence[int] | np.ndarray, transform: Transform | None = None) -> Self:
        """A data set of the pictures at ``indices`` with another transform; the cache is shared."""
        subset = copy.copy(self)
        subset.names = [self.names[i] for i in indices]
        subset.image_ids = [self.image_ids[i] for i in indices]
        subset.sources = [self.sources[i] for i in indices]
        subset.transform = transform
        return subset


def label_progress(items: Iterable[T], count: int, title: str = "labels") -> Iterable[T]:
    """``items``, with a progress bar if reading the labels of ``count`` pictures takes more than two seconds."""
    hidden = not distributed.is_main()
    bar: Iterable[T] = tqdm(items, title, count, unit="picture", leave=False, delay=2, disable=hidden)
    return bar


def _compact(labels: InstanceLabels) -> InstanceLabels:
    """The same labels with int16 planes if the ids fit, to save memory in the cache."""
    if labels.planes.numel() and int(labels.planes.max()) > torch.iinfo(torch.int16).max:
        return labels
    return _with_type(labels, torch.int16)


def _with_type(labels: InstanceLabels, dtype: torch.dtype) -> InstanceLabels:
    return replace(labels, planes=labels.planes.to(dtype))
