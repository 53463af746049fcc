"""Augmentation: pictures and labels move together, and the same seed gives the same sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskrcnn.data import transforms as T
from maskrcnn.data.appearance import ColorJitter
from maskrcnn.data.sample import Sample
from maskrcnn.structures import InstanceLabels


def cells(height: int = 60, width: int = 80) -> Sample:
    """Rectangles whose pixels carry their id times ten in every channel: picture and labels can be compared."""
    planes = torch.zeros(2, height, width, dtype=torch.int32)
    planes[0, 5:15, 10:30], planes[0, 40:50, 5:25] = 1, 4
    planes[1, 20:28, 50:70] = 3
    image = (planes.max(dim=0).values * 10).to(torch.uint8)[:, :, None].repeat(1, 1, 3)
    return Sample(image, InstanceLabels.from_planes(planes, [1, 2]), "cells", 1)


def agree(sample: Sample) -> bool:
    expected = (sample.labels.planes.max(dim=0).values * 10).to(torch.uint8)
    return all(torch.equal(sample.image[:, :, c], expected) for c in range(3))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("transform", [T.RandomFlip(), T.RandomRotate90(), T.RandomCrop(48), T.RandomCrop(96)])
def test_picture_and_labels_move_together(transform: object) -> None:
    for seed in range(20):
        moved = transform(cells(), rng(seed))  # type: ignore[operator]
        if isinstance(transform, T.RandomCrop):
            # cells of which only a sliver is left are taken out of the planes, not out of the picture; mirrored ones
            # have ids of their own, so that the class is told by the plane
            shown = moved.labels.planes > 0
            values = moved.image[:, :, 0]
            assert set(values[shown[0]].tolist()) <= {10, 40}
            assert set(values[shown[1]].tolist()) <= {30}
        else:
            assert agree(moved)
        for number in range(len(moved.labels)):
            mask = moved.labels.mask(number)
            assert len(moved.image[:, :, 0][mask].unique()) == 1
            ys, xs = torch.nonzero(mask, as_tuple=True)
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert moved.labels.boxes[number].tolist() == [float(v) for v in box]
            assert moved.labels.areas[number] == mask.sum()


def discs(diameter: float, side: int = 400) -> Sample:
    """Discs of one size all over a picture of ``side`` pixels."""
    planes = np.zeros((1, side, side), np.int32)
    y, x = np.mgrid[:side, :side] + 0.5
    centers = np.arange(diameter, side - diameter, 1.5 * diameter)
    for number, (cy, cx) in enumerate([(cy, cx) for cy in centers for cx in centers], start=1):
        planes[0][(y - cy) ** 2 + (x - cx) ** 2 < diameter**2 / 4] = number
    pixels = torch.from_numpy((planes[0] > 0).astype(np.uint8) * 200)[:, :, None].repeat(1, 1, 3)
    return Sample(pixels, InstanceLabels.from_planes(torch.from_numpy(planes), [1]), "discs", 1)


@pytest.mark.parametrize("diameter", [12.0, 30.0, 90.0])
def test_crops_show_cells_at_one_size(diameter: float) -> None:
    crop = T.RandomCrop(256, diameter=30.0)
    for seed in range(4):
        found = crop(discs(diameter), rng(seed))
        assert found.size == (256, 256)
        whole = found.labels.areas.float().median()  # cells that the border cuts are fewer
        assert 2 * float(whole / np.pi) ** 0.5 == pytest.approx(30, rel=0.06)


def test_the_factor_of_a_crop_is_limited() -> None:
    assert T.scale_to(30, 5) == 4
    assert T.scale_to(30, 1000) == 0.25
    assert T.scale_to(30, 15) == 2
    assert T.scale_to(30, None) == 1


def test_some_crops_are_at_any_scale() -> None:
    """From a quarter to four times the picture's size, whatever the diameter of the cells; dots are no cells."""
    crop = T.RandomCrop(256, diameter=30.0, off_scale_probability=0.5)
    sizes = [crop(discs(20.0), rng(seed)).labels.median_diameter() for seed in range(100)]
    usual = [size for size in sizes if size is not None and abs(size - 30) < 1.5]
    others = [size for size in sizes if size is not None and abs(size - 30) >= 1.5]
    assert 35 <= len(usual) <= 65
    assert sum(size is None for size in sizes) > 0
    assert 5.5 < min(others) < 10
    assert 60 < max(others) < 82


def test_a_small_picture_is_not_mirrored_without_end() -> None:
    """64x64 pixels reduced to a quarter would be in a crop of 512 more than 1,000 times."""
    whole = discs(12.0)
    small = T.RandomCrop(64)(whole, rng())
    crop = T.RandomCrop(512, diameter=30.0, off_scale_probability=1.0)
    counts = [len(crop(small, rng(seed)).labels) for seed in range(20)]
    assert max(counts) <= 5 * 5 * len(small.labels)
    assert min(counts) >= 1


def test_a_picture_without_cells_is_taken_to_be_typical() -> None:
    empty = Sample(torch.zeros(200, 200, 3, dtype=torch.uint8), InstanceLabels.empty(200, 200), "empty", 1)
    pixels = torch.arange(200, dtype=torch.uint8)[:, None, None].repeat(1, 200, 3)
    ramp = Sample(pixels, empty.labels, "ramp", 1)
    crop = T.RandomCrop(64, diameter=30.0, typical_diameter=15.0)
    rise = crop(ramp, rng()).image[:, 0, 0].float().diff()[2:-2].mean()
    assert float(rise) == pytest.approx(0.5, abs=0.02)  # enlarged by 30 / 15


def test_the_same_seed_gives_the_same_sample() -> None:
    augment = T.Compose([T.RandomCrop(40, scale=(0.7, 1.4)), T.RandomFlip(), T.RandomRotate90(), ColorJitter()])
    a, b, c = (augment(cells(), rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.labels.planes, b.labels.planes)
    assert not torch.equal(a.image, c.image)


def test_crops_have_their_size_whatever_the_picture() -> None:
    for height, width in ((33, 86), (200, 30), (64, 64), (1, 1)):
        sample = Sample(torch.zeros(height, width, 3, dtype=torch.uint8), InstanceLabels.empty(height, width), "x", 1)
        crop = T.RandomCrop(64, scale=(0.8, 1.25), rare_class_probability=0.5)(sample, rng())
        assert crop.size == (64, 64)
        assert crop.labels.size == (64, 64)


def test_rare_classes_are_cropped_as_often_as_others() -> None:
    """One cell of class 2 beside a hundred of class 1, far apart: half of the centred crops show the one."""
    planes = torch.zeros(2, 400, 400, dtype=torch.int32)
    for number in range(100):
        y, x = divmod(number, 10)
        planes[0, 10 * y : 10 * y + 5, 10 * x : 10 * x + 5] = number + 1
    planes[1, 350:360, 350:360] = 1
    sample = Sample(torch.zeros(400, 400, 3, dtype=torch.uint8), InstanceLabels.from_planes(planes, [1, 2]), "x", 1)
    shown = [
        sum(2 in T.RandomCrop(64, rare_class_probability=p)(sample, rng(seed)).labels.classes for seed in range(200))
        for p in (1.0, 0.0)
    ]
    assert 70 <= shown[0] <= 130
    assert shown[1] <= 30


def test_slivers_are_background() -> None:
    planes = torch.zeros(1, 40, 40, dtype=torch.int32)
    planes[0, 5:15, 0:40] = 1
    sample = Sample(torch.zeros(40, 40, 3, dtype=torch.uint8), InstanceLabels.from_planes(planes, [1]), "x", 1)
    crops = [T.RandomCrop(16, min_visible=0.3)(sample, rng(seed)) for seed in range(50)]
    for crop in crops:
        if len(crop.labels):
            assert crop.labels.areas[0] >= 0.3 * 400
    assert {len(crop.labels) for crop in crops} == {0, 1}


def test_scaling_changes_areas_by_the_square() -> None:
    big = T.Resize((120, 160))(cells(), rng())
    assert big.labels.areas.tolist() == (cells().labels.areas * 4).tolist()
    assert big.labels.boxes.tolist() == (cells().labels.boxes * 2).tolist()


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (64, 64), (3, 200), (1, 1)])
@pytest.mark.parametrize("side", [64, 128])
def test_whole_pictures_become_squares_of_one_size(height: int, width: int, side: int) -> None:
    rows = torch.arange(height, dtype=torch.uint8)[:, None, None].repeat(1, width, 3)
    planes = torch.ones(1, height, width, dtype=torch.int32)
    square = T.ResizeAndPad(side)(Sample(rows, InstanceLabels.from_planes(planes, [1]), "x", 1), rng())
    assert square.size == square.labels.size == (side, side)
    assert square.labels.areas.tolist() == [side * side]  # one cell with its mirror images, which touch it
    factor = side / max(height, width)
    inside = square.image[: round(height * factor), : max(1, round(width * factor)), 0]
    assert torch.equal(inside, inside[:, :1].expand_as(inside))
    assert abs(int(inside[-1, 0]) - (height - 1)) <= 1
