"""The training and validation pictures of a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskrcnn import distributed
from maskrcnn.data import transforms as T
from maskrcnn.data.appearance import appearance
from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.dataset import CellDataset, Transform
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.split import repeat_factors, train_val_split
from maskrcnn.engine.config import DataOptions, TrainConfig
from maskrcnn.errors import writing


@dataclass(frozen=True)
class Datasets:
    """``train`` gives augmented crops, ``val`` whole pictures; ``repeat_factors`` float64 [len(train)]."""

    train: Hw3Folder | CocoDataset
    val: Hw3Folder | CocoDataset
    repeat_factors: np.ndarray
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def build_datasets(config: TrainConfig, folder: Path) -> Datasets:
    """Read, split and augment the pictures that ``config`` names; without any, write a synthetic set into ``folder``.

    Raises InputError for data that cannot be used.
    """
    options = config.data_options
    data = options.data
    if data is None:
        data = folder / "synthetic"
        distributed.from_main(lambda: _write_synthetic(data, config.seed))
    source: Hw3Folder | CocoDataset
    if data.suffix == ".json":
        source = CocoDataset(data, options.image_root, percentiles=options.percentiles, num_classes=options.num_classes)
    else:
        source = Hw3Folder(data, percentiles=options.percentiles, num_classes=options.num_classes)
    source.cache.limit = options.cache_gb * 1e9
    counts = source.class_counts()
    train_indices, val_indices = train_val_split(counts, options.val_fraction, options.split_seed)
    if distributed.is_main():
        print(
            f"{data}: {len(train_indices)} training and {len(val_indices)} validation pictures; cells of class "
            + ", ".join(f"{k}: {n}" for k, n in enumerate(counts.sum(0).tolist(), start=1))
        )
    return Datasets(
        train=source.subset(train_indices, training_transform(options, typical_diameter(source, train_indices))),
        val=source.subset(val_indices),
        repeat_factors=repeat_factors(counts[train_indices], options.repeat_threshold),
        class_names=source.class_names,
    )


def _write_synthetic(folder: Path, seed: int) -> None:
    """A synthetic set in ``folder``, unless it is there: beside it first, so that a kill leaves no half of one."""
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
    """The median over the pictures at ``indices`` of their cells' median diameter; None without any cell."""
    diameters = [dataset.labels(index).median_diameter() for index in indices]
    known = [diameter for diameter in diameters if diameter is not None]
    return float(np.median(known)) if known else None


def training_transform(options: DataOptions, typical: float | None = None) -> T.Compose:
    """A random crop at a random scale, turned, mirrored and with its colours changed.

    ``typical`` is the diameter of cells, in pixels, that a picture without any is taken to show.
    """
    steps: list[Transform] = [
        T.RandomCrop(
            options.crop,
            scale=options.scale(),
            rare_class_probability=options.rare_class_probability,
            diameter=options.canonical_diameter(),
            typical_diameter=typical,
        ),
        T.RandomFlip(),
        T.RandomRotate90(),
        *appearance(options.appearance, options.color_jitter),
    ]
    return T.Compose(steps)
