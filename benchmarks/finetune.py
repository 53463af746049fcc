"""Fine-tuning of a model that comes with the package, compared to training from random weights.

    python -m benchmarks.finetune --data DIR [--val DIR] [--pictures 5 20 0] [--steps 400] [-- --crop 256]

Trains on a few pictures of a new task, with the same number of steps from both initializations, and scores both, and
the model before training, on the same validation pictures, which the model should not have been trained on. Options
after ``--`` are passed to train.py. Completed runs are not repeated, and stopped runs are resumed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.measure import machine, table
from benchmarks.runs import finished_run, validations
from maskrcnn import pretrained
from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.split import repeat_factors, train_val_split
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.loader import EpochSampler

BATCH = 4
SCORES = {"mask/AP@1000": "AP", "mask/AP50@1000": "AP50", "dense/AP50": "TP/(TP+FP+FN) at 0.5"}


@dataclass(frozen=True)
class Options:
    """Fine-tune with few pictures, from two starts."""

    data: Path
    """Folder in the HW3 layout."""
    val: Path | None = None
    """Folder with the validation pictures; None: a part of --data."""
    out: Path = Path("runs/finetune")
    start: str = pretrained.DEFAULT
    """The model to start from, by name or as a file."""
    pictures: tuple[int, ...] = (5, 20, 0)
    """How many pictures to train on; 0: all but those of validation."""
    steps: int = 400
    repeat_threshold: float = TrainConfig().data_options.repeat_threshold
    """--repeat-threshold of train.py: pictures of rare classes are repeated."""
    random_lr: float | None = None
    """Learning rate from random weights, which need a higher one; None: that of the options of train.py."""
    val_fraction: float = 0.1
    """Part of --data to validate on, without --val."""
    seeds: tuple[int, ...] = (0,)
    """Seed of the choice of pictures and of training."""


def choose(counts: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Indices of ``number`` pictures such that each class is in at least one of them, if possible."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(counts))
    first = [next(index for index in order if counts[index, k]) for k in np.flatnonzero(counts.sum(0))]
    rest = [index for index in order if index not in first]
    return np.array(list(dict.fromkeys([*first, *rest]))[:number])


def link(folder: Hw3Folder, names: Sequence[str], path: Path) -> Path:
    """Make a data set of these pictures only, by links; those of an earlier study are removed."""
    pictures = path / "train"
    pictures.mkdir(parents=True, exist_ok=True)
    for earlier in pictures.iterdir():
        if earlier.is_symlink():
            earlier.unlink()
    for name in names:
        (pictures / name).symlink_to((folder.folder / name).resolve(), target_is_directory=True)
    return path


def main() -> None:
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, recipe = tyro.cli(Options, args=arguments[:split], description=__doc__), arguments[split + 1 :]
    folder = Hw3Folder(options.data)
    counts = folder.class_counts()
    train, validation = np.arange(len(counts)), options.val
    if validation is None:
        train, val = train_val_split(counts, options.val_fraction, 0)
        validation = link(folder, [folder.names[i] for i in val], options.out / "data" / "val")
    network = load_checkpoint(options.start)["model_options"]
    keys = ("depth", "norm", "stages", "width", "channels", "box_hidden", "mask_convs", "anchor_ratios", "anchor_sizes")
    same: list[str] = []
    for key in keys:
        value = network[key]
        texts = [",".join(f"{size:g}" for size in level) for level in value] if key == "anchor_sizes" else value
        flag = "pyramid-channels" if key == "channels" else key.replace("_", "-")
        same += [f"--{flag}", *map(str, texts if isinstance(texts, list | tuple) else [texts])]
    if options.random_lr is not None:
        same += ["--lr", str(options.random_lr)]
    rows = []
    for number in options.pictures:
        for seed in options.seeds:
            chosen = train[choose(counts[train], number or len(train), seed)]
            data = link(folder, [folder.names[i] for i in chosen], options.out / "data" / f"{number or 'all'}-{seed}")
            sampler = EpochSampler(repeat_factors(counts[chosen], options.repeat_threshold), BATCH, seed)
            epochs = math.ceil(options.steps / len(sampler))
            common = ["--data", str(data), "--val", str(validation), "--num-classes", str(folder.num_classes)]
            common += ["--batch-size", str(BATCH), "--epochs", str(epochs), "--val-every", str(epochs)]
            common += ["--repeat-threshold", str(options.repeat_threshold), "--seed", str(seed), *recipe]
            for name, own in ((options.start, ["--from", options.start]), ("random weights", same)):
                run = options.out / f"{name.replace(' ', '-').replace('/', '-')}-{number or 'all'}-{seed}"
                scores = finished_run(run, [*common, *own], len(os.sched_getaffinity(0)))
                zero = [row for row in validations(run) if row["step"] == 0]
                before = [f"{zero[0][key]:.3f}" if zero else "" for key in SCORES]
                row = [str(len(chosen)), str(seed), name, str(int(scores["step"])), *before]
                rows.append([*row, *(f"{scores[key]:.3f}" for key in SCORES)])
    columns = [*(f"{score} at step 0" for score in SCORES.values()), *SCORES.values()]
    text = table(["pictures", "seed", "start", "steps", *columns], rows)
    text = f"{machine()}; python -m benchmarks.finetune {' '.join(arguments)}\n\n{text}\n"
    (options.out / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
