"""Builds the training and validation data sets of a run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn import distributed
from maskrcnn.data import transforms as T
from maskrcnn.data.appearance import appearance
from maskrcnn.data.coco import CocoDataset, to_coco
from maskrcnn.data.dataset import Cache, CellDataset, Transform, label_progress
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.joined import JoinedDataset
from maskrcnn.data.split import repeat_factors, train_val_split
from maskrcnn.engine.config import DataOptions, TrainConfig
from maskrcnn.errors import InputError, writing


@dataclass(frozen=True)
class Datasets:
    """Training set of augmented crops, validation set of whole pictures; ``repeat_factors`` float64 [len(train)]."""

    train: CellDataset
    val: CellDataset
    repeat_factors: np.ndarray
    class_names: list[str]
    category_ids: list[int]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def truth(self) -> dict[str, Any]:
        """COCO ground truth of the validation pictures."""
        return to_coco(self.val)


def build_datasets(config: TrainConfig, folder: Path, split: dict[str, list[str]] | None = None) -> Datasets:
    """Read, split and augment the data of ``config``; without any, write a synthetic data set into ``folder``.

    Args:
        config: the options.
        folder: the run's folder.
        split: names of the pictures for ``train`` and ``val`` of a run that is resumed, which are kept if the data
            still has just these pictures: a split depends on the names of the folders.

    Raises:
        InputError: invalid data, pictures that cannot be opened, or no cell to train on.
    """
    options = config.data_options
    data = options.data
    if not data:
        synthetic = folder / "synthetic"
        distributed.from_main(lambda: _write_synthetic(synthetic, config.seed))
        data = (synthetic,)
    parts = _read_sources((*data, *options.val), options)
    joined = _join(parts, options)
    kinds = joined.kind_counts()
    indices = {name: index for index, name in enumerate(joined.names)}
    if split is not None and indices.keys() == {*split["train"], *split["val"]}:
        train_indices, val_indices = (np.array([indices[name] for name in split[part]]) for part in ("train", "val"))
    elif options.val:
        train_indices, val_indices = np.split(np.arange(len(joined)), [sum(map(len, parts[: len(data)]))])
    else:
        groups = None if options.group_by is None else joined.groups(options.group_by)
        train_indices, val_indices = train_val_split(kinds, options.val_fraction, options.split_seed, groups)
    datasets = Datasets(
        train=joined.subset(train_indices, training_transform(options, typical_diameter(joined, train_indices))),
        val=joined.subset(val_indices),
        repeat_factors=repeat_factors(kinds[train_indices], options.repeat_threshold),
        class_names=joined.class_names,
        category_ids=joined.category_ids,
    )
    given = " ".join(map(str, (*data, *options.val)))
    _check_pictures(joined, datasets.val)
    if distributed.is_main():
        print(f"{given}: {describe(datasets.train, datasets.val)}")
    if not datasets.train.class_counts().any():
        raise InputError(f"{given}: no cell in any of the {len(datasets.train)} training pictures; expected labels")
    if not datasets.val.class_counts().any() and distributed.is_main():
        print(f"warning: {given}: no cell in any validation picture, so there are no scores", file=sys.stderr)
    return datasets


def _check_pictures(pictures: CellDataset, validation: CellDataset) -> None:
    """Raise errors now that would end a run in the middle of an epoch or at its first validation.

    The labels of training pictures have been read by then (:func:`typical_diameter`).
    """
    with ThreadPoolExecutor() as pool:
        every = pool.map(pictures.open_image, range(len(pictures)))
        for _ in label_progress(every, len(pictures), "pictures"):
            pass
    for index in label_progress(range(len(validation)), len(validation)):
        validation.labels(index)


def read_datasets(paths: Sequence[Path], options: DataOptions) -> JoinedDataset:
    """All pictures of folders and COCO files, without augmentation; raises InputError for invalid data."""
    return _join(_read_sources(paths, options), options)


def _join(parts: Sequence[CellDataset], options: DataOptions) -> JoinedDataset:
    return JoinedDataset(parts, options.merge_classes, options.source_by, Cache(options.cache_gb * 1e9))


def _read_sources(paths: Sequence[Path], options: DataOptions) -> list[CellDataset]:
    parts: dict[Path, CellDataset] = {}
    for path in paths:
        resolved, part = _read_source(path, options)
        if resolved in parts:
            raise InputError(f"{path}: given twice in --data and --val; expected once")
        parts[resolved] = part
    return list(parts.values())


def _read_source(path: Path, options: DataOptions) -> tuple[Path, CellDataset]:
    """The resolved path of a data set's file or folder, and the data set."""
    if path.suffix.lower() == ".json":
        coco = CocoDataset(
            path,
            options.image_root,
            percentiles=options.percentiles,
            num_classes=options.num_classes,
            channels=options.channels,
        )
        return path.resolve(), coco
    hw3 = Hw3Folder(path, percentiles=options.percentiles, num_classes=options.num_classes, channels=options.channels)
    return hw3.folder.resolve(), hw3


def describe(train: CellDataset, val: CellDataset) -> str:
    """A text with the numbers of pictures of both sets and of cells per class, and one line per source."""
    train_counts, val_counts = train.class_counts(), val.class_counts()
    total = train_counts.sum(0) + val_counts.sum(0)
    lines = [
        f"{len(train)} training and {len(val)} validation pictures; cells of class "
        + ", ".join(f"{name}: {n}" for name, n in zip(train.class_names, total.tolist(), strict=True))
    ]
    for source in sorted({*train.sources, *val.sources}):
        in_train, in_val = np.array(train.sources) == source, np.array(val.sources) == source
        lines.append(
            f"  {source}: {in_train.sum()} training pictures with {train_counts[in_train].sum()} cells, "
            f"{in_val.sum()} validation pictures with {val_counts[in_val].sum()} cells"
        )
    return "\n".join(lines)


def _write_synthetic(folder: Path, seed: int) -> None:
    """Write a synthetic data set unless ``folder`` exists, under a temporary name first, so that it is complete."""
    if folder.exists():
        return
    from maskrcnn.data.synthetic import write_dataset  # scikit-image takes a second to import

    print(f"no --data: writing a synthetic data set to {folder}")
    beside = folder.with_name(folder.name + ".part")
    with writing(folder):
        shutil.rmtree(beside, ignore_errors=True)
        write_dataset(beside, seed=seed)
        beside.rename(folder)


def typical_diameter(dataset: CellDataset, indices: Sequence[int] | np.ndarray) -> float | None:
    """The median over the pictures at ``indices`` of their median cell diameters; None without any cell."""
    diameters = [dataset.labels(index).median_diameter() for index in label_progress(indices, len(indices))]
    known = [diameter for diameter in diameters if diameter is not None]
    return float(np.median(known)) if known else None


def training_transform(options: DataOptions, typical: float | None = None) -> T.Compose:
    """The augmentation: random crop and scale, or resize of the whole picture; flips, rotations, and appearance.

    ``typical`` is the cell diameter in pixels to assume for pictures without cells.
    """
    crop = T.RandomCrop(
        options.crop,
        scale=options.scale(),
        rare_class_probability=options.rare_class_probability,
        diameter=options.canonical_diameter(),
        typical_diameter=typical,
        off_scale_probability=options.off_scale_probability if options.canonical_diameter() is not None else 0.0,
    )
    steps: list[Transform] = [
        crop if options.resize is None else T.ResizeAndPad(options.resize),
        T.RandomFlip(),
        T.RandomRotate90(),
        *appearance(options.appearance, options.color_jitter),
    ]
    return T.Compose(steps)
