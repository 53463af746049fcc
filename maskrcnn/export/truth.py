"""Reads the ground truth of predicted pictures, for the scores in the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.errors import InputError
from maskrcnn.export.jobs import Job


class Truth:
    """The ground truth in a folder of ``<key>/class1.tif``, ..., as in ``train/``.

    For a network with one class, all classes of the files are merged. The names of all pictures are checked at once, so
    that a missing one is reported before hours of prediction.

    Args:
        folder: folder of ``--truth``.
        num_classes: number of classes of the network.
        jobs: the pictures to be predicted.

    Raises:
        InputError: the folder is missing or empty, has other classes, or lacks a picture.
    """

    def __init__(self, folder: Path, num_classes: int, jobs: Sequence[Job]) -> None:
        self.merge_classes = num_classes == 1
        try:
            self.dataset = Hw3Folder(folder, num_classes=None if self.merge_classes else num_classes)
        except InputError as error:
            raise InputError(f"--truth: {error}") from error
        self.index = {name: index for index, name in enumerate(self.dataset.names)}
        missing = [job for job in jobs if job.key not in self.index]
        if missing:
            others = f", and none for {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"--truth {folder}: no folder {missing[0].key} for {missing[0].path}{others}")

    def read(self, job: Job, size: tuple[int, int]) -> list[dict[str, Any]]:
        """The true cells of a picture as COCO annotations: ``category_id``, ``area``, ``segmentation`` (RLE as text).

        Raises InputError if the labels cannot be read, or do not have the picture's ``size``.
        """
        labels = self.dataset.read_labels(self.index[job.key])
        if labels.size != size:
            (height, width), (h, w) = labels.size, size
            raise InputError(
                f"--truth: {self.dataset.folder / job.key} has {height}x{width} pixels, but {job.path} {h}x{w}"
            )
        classes = [1] * len(labels.classes) if self.merge_classes else labels.classes.tolist()
        return [
            {"category_id": category, "segmentation": {**rle, "counts": rle["counts"].decode()}, "area": area}
            for rle, category, area in zip(labels.to_rle(), classes, labels.areas.tolist(), strict=True)
        ]
