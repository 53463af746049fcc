"""Mirror padding of images that are smaller than a training crop."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from maskrcnn.data.sample import Sample
from maskrcnn.structures import InstanceLabels

Ints = npt.NDArray[np.int64]


def mirror_to(sample: Sample, height: int, width: int) -> Sample:
    """Pad a sample with mirror images of itself at the right and the bottom, up to ``height`` x ``width`` pixels.

    Black padding would enter the means and variances of GroupNorm, unlike in prediction. A mirrored cell is a new
    instance, unless it touches the edge at which it is mirrored: then it and its mirror image are one cell, since
    nothing separates them. A side that is long enough is unchanged.
    """
    h, w = sample.size
    down, right = max(0, height - h), max(0, width - w)
    if down == 0 and right == 0:
        return sample
    pixels = np.pad(sample.image.numpy(), ((0, down), (0, right), (0, 0)), mode="symmetric")
    labels = _mirror_labels(sample.labels, h + down, w + right)
    return Sample(torch.from_numpy(pixels), labels, sample.name, sample.image_id)


def _mirror_labels(labels: InstanceLabels, height: int, width: int) -> InstanceLabels:
    h, w = labels.size
    planes = labels.planes.numpy()
    # renumber the instances of all planes 1..N, so that the tables below stay small
    number = np.zeros(planes.shape, np.int64)
    for index, (plane, identity) in enumerate(zip(labels.plane.tolist(), labels.ids.tolist(), strict=True), start=1):
        x1, y1, x2, y2 = (int(side) for side in labels.boxes[index - 1].tolist())
        window = np.s_[plane, y1:y2, x1:x2]
        number[window][planes[window] == identity] = index
    count = len(labels) + 1
    rows = _copies(labels.boxes[:, 1].numpy() <= 0, labels.boxes[:, 3].numpy() >= h, -(-height // h))
    columns = _copies(labels.boxes[:, 0].numpy() <= 0, labels.boxes[:, 2].numpy() >= w, -(-width // w))
    padded = np.pad(number, ((0, 0), (0, height - h), (0, width - w)), mode="symmetric")
    row, column = np.arange(height) // h, np.arange(width) // w
    copy = rows[row[:, None], padded] * len(columns) + columns[column[None, :], padded]
    planes = np.where(padded > 0, copy * count + padded, 0).astype(np.int32)
    copies = len(rows) * len(columns)
    ids = (np.arange(copies)[:, None] * count + np.arange(1, count)).reshape(-1)  # ids without pixels are dropped
    return InstanceLabels.from_instances(
        torch.from_numpy(planes), labels.plane.repeat(copies), torch.from_numpy(ids), labels.classes.repeat(copies)
    )


def _copies(touches_start: npt.NDArray[np.bool_], touches_end: npt.NDArray[np.bool_], tiles: int) -> Ints:
    """Copy number of each instance in each mirror image along one axis, int64 [tiles, N + 1]; column 0 is background.

    The mirror images are joined at the original's end and start alternately; an instance that touches the edge of a
    join continues in the next mirror image, so that it keeps its copy number, else it gets the next one.
    """
    touches = [np.concatenate([[True], side]) for side in (touches_end, touches_start)]
    steps = [np.zeros_like(touches[0])] + [~touches[join % 2] for join in range(tiles - 1)]
    return np.cumsum(np.stack(steps), axis=0, dtype=np.int64)
