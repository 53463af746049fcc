"""Geometric augmentation of images and their label planes; for colours see :mod:`maskrcnn.data.appearance`.

Each transform is a callable ``(sample, rng) -> sample`` whose result depends only on its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.data.dataset import Transform
from maskrcnn.data.mirror import mirror_to
from maskrcnn.data.sample import Sample
from maskrcnn.structures import InstanceLabels

SCALE_LIMITS = (0.25, 4.0)
"""Range of the factor that brings cells to the canonical size. Enlarging cells of fewer than 8 pixels adds no detail,
and a picture that a single cell fills would become a thumbnail."""

RECOGNIZABLE = 6.0
"""Diameter in pixels below which a cell is a dot."""

MOST_COPIES = 4
"""How often a picture that is smaller than the crop may be mirrored, along its longer side, by a crop at any scale."""


@dataclass(frozen=True)
class Compose:
    """Several transforms, one after the other."""

    transforms: Sequence[Transform]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


@dataclass(frozen=True)
class Resize:
    """Resize to a fixed ``size`` (H, W): images bilinear with antialiasing, planes nearest neighbour."""

    size: tuple[int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _with(sample, _resize_image(sample.image, self.size), _resize_planes(sample.labels.planes, self.size))


@dataclass(frozen=True)
class ResizeAndPad:
    """Resize the longer side to ``side`` pixels and pad the shorter one to the same length by mirroring
    (:func:`maskrcnn.data.mirror.mirror_to`)."""

    side: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = (max(1, round(part * self.side / max(sample.size))) for part in sample.size)
        return mirror_to(Resize((height, width))(sample, rng), self.side, self.side)


@dataclass(frozen=True)
class RandomCrop:
    """Crop a square of ``size`` pixels at a random position and scale.

    Smaller images are padded by mirroring (:func:`maskrcnn.data.mirror.mirror_to`).

    Attributes:
        size: side of the result in pixels.
        scale: range of the factor by which the crop is enlarged, drawn log-uniformly; only the crop is resampled.
        diameter: the image is first scaled so that its cells have this median diameter in pixels (of the circle of
            equal area), by a factor within :data:`SCALE_LIMITS`; None: no scaling.
        typical_diameter: diameter to assume for images without cells; None: these are not scaled.
        rare_class_probability: fraction of crops that are placed around a cell: one of the image's classes is drawn
            uniformly, then one of its cells, so that rare classes are seen more often.
        min_visible: cells with less than this fraction of their area in the crop become background: a sliver at the
            border cannot be recognized.
        off_scale_probability: fraction of the crops whose factor is drawn from :data:`SCALE_LIMITS` instead,
            log-uniformly, whatever the diameter of the cells: the estimate of the diameter looks at pictures at such
            scales, where clumps of cells must not be taken for cells. Cells below :data:`RECOGNIZABLE` pixels become
            background there.
    """

    size: int
    scale: tuple[float, float] = (1.0, 1.0)
    rare_class_probability: float = 0.0
    min_visible: float = 0.1
    diameter: float | None = None
    typical_diameter: float | None = None
    off_scale_probability: float = 0.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = _factor(rng, *self.scale)
        off_scale = self.off_scale_probability > 0 and rng.random() < self.off_scale_probability
        if off_scale:
            least = self.size / (MOST_COPIES * max(sample.size))
            factor = _factor(rng, min(max(SCALE_LIMITS[0], least), SCALE_LIMITS[1]), SCALE_LIMITS[1])
        elif self.diameter is not None:
            factor *= scale_to(self.diameter, sample.labels.median_diameter() or self.typical_diameter)
        side = max(1, round(self.size / factor))
        top, left = self._corner(sample, side, rng)
        height, width = (min(side, length) for length in sample.size)
        crop = _window(sample, top, left, height, width)
        crop = _drop_slivers(crop, sample.labels, sample.labels.areas, self.min_visible)
        if side != self.size:
            size = [self.size if length == side else max(1, round(length * factor)) for length in (height, width)]
            crop = Resize((size[0], size[1]))(crop, rng)
        if off_scale:
            crop = _select(crop, crop.labels.areas >= np.pi / 4 * RECOGNIZABLE**2)
        return mirror_to(crop, self.size, self.size)

    def _corner(self, sample: Sample, side: int, rng: np.random.Generator) -> tuple[int, int]:
        around_cell = rng.random() < self.rare_class_probability
        free = [max(0, length - side) for length in sample.size]
        if not around_cell or len(sample.labels) == 0:
            return int(rng.integers(0, free[0] + 1)), int(rng.integers(0, free[1] + 1))
        classes = sample.labels.classes.numpy()
        cell = rng.choice(np.flatnonzero(classes == rng.choice(np.unique(classes))))
        x1, y1, x2, y2 = sample.labels.boxes[int(cell)].tolist()
        center = ((y1 + y2) / 2, (x1 + x2) / 2)
        shift = rng.uniform(-0.35, 0.35, 2) * side  # the cell need not be in the centre
        corner = [round(c + s - side / 2) for c, s in zip(center, shift, strict=True)]
        return min(max(0, corner[0]), free[0]), min(max(0, corner[1]), free[1])


@dataclass(frozen=True)
class RandomFlip:
    """Flip horizontally and vertically, each with ``probability``."""

    probability: float = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        axes = [axis for axis in (0, 1) if rng.random() < self.probability]
        if not axes:
            return sample
        return _with(sample, sample.image.flip(axes), sample.labels.planes.flip([axis + 1 for axis in axes]))


@dataclass(frozen=True)
class RandomRotate90:
    """Rotate by 0, 90, 180 or 270 degrees."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        turns = int(rng.integers(4))
        if turns == 0:
            return sample
        planes = sample.labels.planes.rot90(turns, (1, 2)).contiguous()
        return _with(sample, sample.image.rot90(turns, (0, 1)).contiguous(), planes)


def scale_to(canonical: float, diameter: float | None) -> float:
    """The factor, within :data:`SCALE_LIMITS`, that scales cells of ``diameter`` pixels to ``canonical`` pixels; 1 if
    ``diameter`` is None."""
    if diameter is None:
        return 1.0
    return min(max(canonical / diameter, SCALE_LIMITS[0]), SCALE_LIMITS[1])


def _factor(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _with(sample: Sample, image: Tensor, planes: Tensor) -> Sample:
    return Sample(image, sample.labels.with_planes(planes), sample.name, sample.image_id)


def _window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    image = sample.image[top : top + height, left : left + width]
    planes = sample.labels.planes[:, top : top + height, left : left + width]
    return _with(sample, image.contiguous(), planes.contiguous())


def _drop_slivers(crop: Sample, before: InstanceLabels, areas: Tensor, min_visible: float) -> Sample:
    """Remove cells whose visible fraction is too small; their pixels become background."""
    labels = crop.labels
    area_of = dict(zip(zip(before.plane.tolist(), before.ids.tolist(), strict=True), areas.tolist(), strict=True))
    keys = zip(labels.plane.tolist(), labels.ids.tolist(), strict=True)
    original = torch.tensor([area_of[key] for key in keys], dtype=torch.float64)
    keep = labels.areas >= min_visible * original
    return _select(crop, keep)


def _select(sample: Sample, keep: Tensor) -> Sample:
    """The sample with the instances that ``keep``, bool [N], selects; the pixels of the others become background."""
    return sample if bool(keep.all()) else replace(sample, labels=sample.labels.select(keep))


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize in PyTorch's integer arithmetic for uint8, several times as fast as floats and off by at most 1."""
    pixels = image.permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).contiguous()


def _resize_planes(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize by nearest neighbour at pixel centres, by indexing: ids must not be converted to floats."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for new, old in zip(size, planes.shape[1:], strict=True)
    )
    return torch.from_numpy(planes.numpy()[:, rows.numpy()].take(columns.numpy(), axis=2))
