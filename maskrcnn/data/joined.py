"""Joins several data sets into one, whose pictures keep the source that they come from."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskrcnn.data.dataset import Cache, CellDataset
from maskrcnn.data.stored import StoredPicture
from maskrcnn.errors import InputError
from maskrcnn.structures import InstanceLabels


@dataclass(frozen=True)
class _Origin:
    """Where a picture of the joined data set comes from.

    Attributes:
        part, index: number of its data set, and its index in that.
        prefix: prefix that makes its name unique.
        source: its source without the class.
        counts: int64 [K], number of cells of each class in its files; K is the largest number of classes of a part.
    """

    part: int
    index: int
    prefix: str
    source: str
    counts: npt.NDArray[np.int64]


class JoinedDataset(CellDataset):
    """Concatenation of several data sets, optionally with all classes merged into one.

    Names that occur in two parts get the part's source as a prefix (``dsb2018/0001``); ``image_ids`` are 1..N. A
    picture's source is that of its part, or the match of ``source_by``. If classes are merged, a picture whose cells
    all have one of several classes keeps it in its source (``dsb2018/class1``): such classes are often kinds of
    pictures.

    Args:
        parts: the data sets; with the same class names, unless classes are merged. All their labels are read.
        merge_classes: name of the single class that all cells get; None: classes are unchanged. Cells of different
            classes may overlap, and stay in different planes.
        source_by: regular expression; if it matches the start of a picture's name, the matched text is its source.
        cache: cache for all parts; default: a new one.

    Raises:
        InputError: the parts have different classes that are not to be merged, or labels cannot be read.
    """

    def __init__(
        self,
        parts: Sequence[CellDataset],
        merge_classes: str | None = None,
        source_by: str | None = None,
        cache: Cache | None = None,
    ) -> None:
        super().__init__()
        if merge_classes is None:
            _check_same_classes(parts)
        self.merge_classes = merge_classes
        self.cache = cache if cache is not None else self.cache
        self._parts = [copy.copy(part) for part in parts]
        for number, part in enumerate(self._parts):
            part.cache, part.cache_prefix = self.cache, f"{number}/"
        self._class_names = [merge_classes] if merge_classes is not None else parts[0].class_names
        self._category_ids = [1] if merge_classes is not None else parts[0].category_ids
        self.num_classes = len(self._class_names)
        origins = _origins(self._parts, source_by)
        self.names = [origin.prefix + self._parts[origin.part].names[origin.index] for origin in origins]
        self.image_ids = list(range(1, len(origins) + 1))
        self.sources = [self._source(origin) for origin in origins]
        self._origins = dict(zip(self.names, origins, strict=True))  # by name, so that subsets need no copy

    @property
    def class_names(self) -> list[str]:
        return list(self._class_names)

    @property
    def category_ids(self) -> list[int]:
        """The ids of the first part; [1] if classes are merged."""
        return list(self._category_ids)

    def file_name(self, index: int) -> str:
        """The picture's file relative to the folder of its part, after the prefix that makes its name unique."""
        origin, part = self._find(index)
        return origin.prefix + part.file_name(origin.index)

    def read_image(self, index: int) -> Tensor:
        origin, part = self._find(index)
        return part.read_image(origin.index)

    def open_image(self, index: int) -> StoredPicture:
        origin, part = self._find(index)
        return part.open_image(origin.index)

    def read_labels(self, index: int) -> InstanceLabels:
        origin, part = self._find(index)
        return self._merge_classes(part.read_labels(origin.index))

    def class_counts(self) -> npt.NDArray[np.int64]:
        """Number of cells per picture and class, int64 [pictures, K]. Reads no files."""
        counts = self._file_counts()
        return counts if self.merge_classes is None else counts.sum(1, keepdims=True)

    def kind_counts(self) -> npt.NDArray[np.int64]:
        """Number of cells per picture and kind, by which the split is stratified and sampling is balanced.

        Returns:
            int64 [pictures, S * K], one column per source (without class) and class in the files, source by source.
            With one source and classes not merged, equal to :meth:`class_counts`.
        """
        sources = [self._origins[name].source for name in self.names]
        names, number = np.unique(sources, return_inverse=True)
        file_counts = self._file_counts()
        counts = np.zeros((len(self), len(names), file_counts.shape[1]), np.int64)
        counts[np.arange(len(self)), number] = file_counts
        return counts.reshape(len(self), -1)

    def groups(self, pattern: str) -> npt.NDArray[np.int64]:
        """Group pictures that belong together, such as those of one patient.

        Args:
            pattern: regular expression; pictures with the same match at the start of their names form a group; a
                picture without a match forms its own group.

        Returns:
            int64 [pictures], group numbers from 0.
        """
        numbers: dict[tuple[str, str], int] = {}
        groups = []
        for index, name in enumerate(self.names):
            origin, part = self._find(index)
            match = re.match(pattern, part.names[origin.index])
            key = ("match", match[0]) if match and match[0] else ("name", name)
            groups.append(numbers.setdefault(key, len(numbers)))
        return np.array(groups, np.int64)

    def _find(self, index: int) -> tuple[_Origin, CellDataset]:
        origin = self._origins[self.names[index]]
        return origin, self._parts[origin.part]

    def _source(self, origin: _Origin) -> str:
        classes = np.flatnonzero(origin.counts)
        if self.merge_classes is None or self._parts[origin.part].num_classes == 1 or len(classes) != 1:
            return origin.source
        return f"{origin.source}/{self._parts[origin.part].class_names[classes[0]]}"

    def _file_counts(self) -> npt.NDArray[np.int64]:
        return np.stack([self._origins[name].counts for name in self.names])

    def _merge_classes(self, labels: InstanceLabels) -> InstanceLabels:
        if self.merge_classes is None:
            return labels
        return replace(labels, classes=torch.ones_like(labels.classes))

    def _image(self, index: int) -> Tensor:
        origin, part = self._find(index)
        return part._image(origin.index)

    def _compact_labels(self, index: int) -> InstanceLabels:
        origin, part = self._find(index)
        return self._merge_classes(part._compact_labels(origin.index))


def _check_same_classes(parts: Sequence[CellDataset]) -> None:
    expected = parts[0].class_names
    for number, part in enumerate(parts, start=1):
        if part.class_names != expected:
            raise InputError(
                f"source {number}, {part.sources[0]}: its classes are {', '.join(part.class_names)}; expected "
                f"{', '.join(expected)} as in {parts[0].sources[0]}, or --merge-classes NAME to merge all into one "
                "(--num-classes if folders only have no cells of the last classes)"
            )


def _origins(parts: Sequence[CellDataset], source_by: str | None) -> list[_Origin]:
    """The origins of all pictures, part by part."""
    uses = Counter(name for part in parts for name in part.names)
    prefixes = _prefixes([part.sources[0] for part in parts])
    prefixed = {prefix + name for prefix, part in zip(prefixes, parts, strict=True) for name in part.names}
    num_classes = max(part.num_classes for part in parts)
    origins = []
    for number, part in enumerate(parts):
        counts = np.pad(part.class_counts(), ((0, 0), (0, num_classes - part.num_classes)))
        for index, name in enumerate(part.names):
            match = re.match(source_by, name) if source_by is not None else None
            source = match[0] if match and match[0] else part.sources[index]
            clashes = uses[name] > 1 or name in prefixed
            origins.append(_Origin(number, index, prefixes[number] if clashes else "", source, counts[index]))
    return origins


def _prefixes(sources: Sequence[str]) -> list[str]:
    """Name prefixes of the parts: ``dsb2018/``, ...; ``1-cells/``, ``2-cells/``, ... if two parts share a source."""
    if len(set(sources)) == len(sources):
        return [f"{source}/" for source in sources]
    return [f"{number}-{source}/" for number, source in enumerate(sources, start=1)]
