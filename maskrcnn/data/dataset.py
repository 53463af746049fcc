"""What all data sets of cells share: samples by index, with or without augmentation, and subsets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn.data.labels import InstanceLabels
from maskrcnn.data.sample import Sample

Transform = Callable[[Sample, np.random.Generator], Sample]


class CellDataset(Dataset[Sample]):
    """Pictures with labelled cells; each is decoded once and kept as uint8 pixels and compact integer planes.

    ``dataset[i]`` is the picture as it is, ``dataset[i, seed]`` the picture after ``transform`` with a random generator
    of that seed: what a training step sees depends on the index and the seed alone, whichever process prepares it.

    Subclasses give ``names``, ``image_ids`` and ``num_classes``, and implement :meth:`read_image` and
    :meth:`read_labels`.
    """

    names: list[str]
    image_ids: list[int]
    num_classes: int
    transform: Transform | None = None

    def __init__(self) -> None:
        self._images: dict[str, Tensor] = {}
        self._labels: dict[str, InstanceLabels] = {}

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

    def file_name(self, index: int) -> str:
        """The picture's file, relative to the folder of the pictures."""
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: int | tuple[int, int]) -> Sample:
        index, seed = item if isinstance(item, tuple) else (item, None)
        name = self.names[index]
        if name not in self._images:
            self._images[name] = self.read_image(index)
        sample = Sample(self._images[name], self.labels(index), name, self.image_ids[index])
        if seed is None or self.transform is None:
            return sample
        return self.transform(sample, np.random.default_rng(seed))

    def labels(self, index: int) -> InstanceLabels:
        """The cells of one picture, which need not be decoded for it."""
        name = self.names[index]
        if name not in self._labels:
            self._labels[name] = _compact(self.read_labels(index))
        labels = self._labels[name]
        return InstanceLabels(
            labels.planes.to(torch.int32), labels.plane, labels.ids, labels.classes, labels.boxes, labels.areas
        )

    def class_counts(self) -> np.ndarray:
        """int64 [pictures, K]: cells of each class in each picture. Reads every label file (once)."""
        counts = np.zeros((len(self), self.num_classes), dtype=np.int64)
        with ThreadPoolExecutor() as pool:
            for index, labels in enumerate(pool.map(self.labels, range(len(self)))):
                counts[index] = np.bincount(labels.classes.numpy(), minlength=self.num_classes + 1)[1:]
        return counts

    def subset(self, indices: Sequence[int] | np.ndarray, transform: Transform | None = None) -> Self:
        """The pictures at ``indices``, with another transform; what is decoded is shared."""
        chosen = copy.copy(self)
        chosen.names = [self.names[i] for i in indices]
        chosen.image_ids = [self.image_ids[i] for i in indices]
        chosen.transform = transform
        return chosen


def _compact(labels: InstanceLabels) -> InstanceLabels:
    """The same labels with planes of int16 where the ids allow it: a data set is kept in memory whole."""
    if labels.planes.numel() and int(labels.planes.max()) > torch.iinfo(torch.int16).max:
        return labels
    return InstanceLabels(
        labels.planes.to(torch.int16), labels.plane, labels.ids, labels.classes, labels.boxes, labels.areas
    )
