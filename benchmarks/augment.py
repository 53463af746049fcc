"""What test-time augmentation gains on the validation pictures of a run, and what it costs.

python -m benchmarks.augment --checkpoint runs/NAME/best.pt [--data DIR] [--augment none flips rotations scales]
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

import maskrcnn
from benchmarks.measure import machine, table
from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.data.coco import to_coco
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.datasets import build_datasets
from maskrcnn.evaluation.coco_ap import coco_metrics
from maskrcnn.evaluation.dense import dense_metrics
from maskrcnn.predict.augment import Augment


@dataclass(frozen=True)
class Options:
    """Score the views side by side."""

    checkpoint: Path
    data: Path | None = None
    """The run's data folder, where it is another one now."""
    augment: tuple[Augment, ...] = ("none", "flips", "rotations", "scales")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    config = TrainConfig.from_dict(load_checkpoint(options.checkpoint)["config"])
    if options.data is not None:
        data = dataclasses.replace(config.data_options, data=(options.data,))
        config = dataclasses.replace(config, data_options=data)
    validation = build_datasets(config, options.checkpoint.parent).val
    truth = to_coco(validation)
    rows = []
    for augment in options.augment:
        predictor = maskrcnn.load(options.checkpoint, augment=augment)
        predictor.percentiles = None  # the data set has stretched the pictures
        results, seconds = [], 0.0
        for index, image_id in enumerate(tqdm(validation.image_ids, desc=augment)):
            image = validation[index].image
            start = time.perf_counter()
            cells = predictor(image)
            seconds += time.perf_counter() - start
            results += cells.to_coco(image_id)
        coco = coco_metrics(truth, results, predictor.model.detections_per_image)
        dense = dense_metrics(truth, results)
        scores = [coco["AP"], coco["AP50"], coco["AP75"], dense["AP50"], dense["PQ"]]
        classes = [coco[f"AP50/{name}"] for name in predictor.class_names]
        rows.append([augment, *(f"{score:.3f}" for score in [*scores, *classes]), f"{seconds / len(validation):.2f}"])
    names = [f"AP50 {name}" for name in predictor.class_names]
    header = ["views", "mask AP", "AP50", "AP75", "TP/(TP+FP+FN) at 0.5", "PQ", *names, "seconds a picture"]
    print(f"{machine()}; python -m benchmarks.augment {' '.join(sys.argv[1:])}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
