"""The true cells of predicted pictures, which the report scores the results by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.errors import InputError
from maskrcnn.export.jobs import Job


class Truth:
    """The true cells in a folder of ``<key>/class1.tif``, ..., as in ``train/``.

    For a network of one class all classes of the files are taken as one. The names of all pictures are looked up at
    once, so that one that is missing is told before hours of prediction.

    Args:
        folder: of ``--truth``.
        num_classes: that the network knows.
        jobs: the pictures that will be asked for.

    Raises:
        InputError: the folder is missing, empty or holds other classes, or it lacks a picture.
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
        """A picture's true cells as COCO annotations: ``category_id``, ``area``, ``segmentation`` (RLE as text).

        Raises InputError for labels that cannot be read, or that are not of the picture's ``size``.
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
