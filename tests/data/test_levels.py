"""Pyramids: reduced copies are made from the level that is just large enough, and lie where the full size does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn.data.arrays import picture_of
from maskrcnn.data.picture import Picture, open_pictures
from maskrcnn.data.stored import Level, scale_between
from tests.data.microscope_files import halved, write_svs


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that is nearly linear within a few pixels, so that all ways to reduce it agree."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 40 + k) + np.cos(y / (31 + 3 * k)) for k in range(3)]
    return np.rint(np.stack(waves, axis=2) * 60 + 128).astype(np.uint8)


def counted(picture: Picture) -> dict[tuple[int, int], int]:
    """The numbers of pixels that will be read from each size."""
    counts = {one.size: 0 for one in (picture, *picture.levels)}

    def watch(one: Picture) -> None:
        original = one._read

        def read(top: int, left: int, height: int, width: int) -> np.ndarray:
            counts[one.size] += height * width
            return original(top, left, height, width)

        one._read = read

    for one in (picture, *picture.levels):
        watch(one)
    return counts


@pytest.mark.parametrize(
    ("factor", "level"),
    [(1.3, 0), (0.6, 0), (0.5, 1), (0.3, 1), (0.25, 2), (0.2, 2), (0.126, 2), (0.125, 3), (0.05, 3)],
)
def test_a_rescaled_picture_reads_the_level_that_has_enough_pixels(tmp_path: Path, factor: float, level: int) -> None:
    """Odd sides, so that levels lack their last pixels, and shift nothing."""
    pixels = smooth(1013, 1309)
    (picture,) = open_pictures(write_svs(tmp_path / "a.svs", pixels, (2, 4, 8)), None)
    sizes = [one.size for one in (picture, *picture.levels)]
    assert sizes == [(1013, 1309), (506, 654), (253, 327), (126, 163)]
    counts = counted(picture)
    scaled = picture.rescaled(factor)
    whole = scaled.read(0, 0, *scaled.size).int()
    assert [size for size, count in counts.items() if count] == [sizes[level]]
    expected = picture_of(pixels, None).rescaled(factor)
    assert scaled.size == expected.size
    inside = (slice(2, -2), slice(2, -2))  # the last pixels of a reduced picture may be missing
    assert float((whole - expected.read(0, 0, *expected.size).int())[inside].abs().max()) <= 2
    height, width = scaled.size
    part = scaled.read(height // 3, width // 4, 20, 17).int()
    assert int((part - whole[height // 3 :, width // 4 :][:20, :17]).abs().max()) <= 1


def test_a_reduced_picture_comes_from_the_smallest_level_that_is_large_enough(tmp_path: Path) -> None:
    pixels = smooth(1013, 1309)
    (picture,) = open_pictures(write_svs(tmp_path / "a.svs", pixels, (2, 4, 8)), None)
    counts = counted(picture)
    reduced = picture.reduced(300)
    assert [size for size, count in counts.items() if count] == [(253, 327)]
    assert reduced.shape == (127, 164, 3)
    assert np.abs(reduced[:125, :160].astype(int) - halved(pixels, 8)[:125, :160]).max() <= 2
    scaled = picture.rescaled(0.5)
    assert [level.size for level in scaled.levels] == [(253, 327), (126, 163)]
    assert scaled.reduced(300).shape == reduced.shape


def test_levels_are_stretched_as_the_whole(tmp_path: Path) -> None:
    pixels = (smooth(300, 400) // 4 + 20).astype(np.uint8)
    (picture,) = open_pictures(write_svs(tmp_path / "a.svs", pixels, (2,)), (1.0, 99.0))
    low, high = np.percentile(pixels, (1, 99), method="inverted_cdf")
    level = picture.levels[0].read(0, 0, 150, 200).numpy().astype(float)
    expected = np.clip((halved(pixels).astype(float) - low) * 255 / (high - low), 0, 255)
    assert np.abs(level - expected).max() <= 0.51


def test_the_intensities_of_a_slide_are_those_of_a_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest one with EXACT pixels: a pass over the full size takes hours."""
    monkeypatch.setattr("maskrcnn.data.picture.EXACT", 10_000)
    pixels = (smooth(300, 400) // 4 + 20).astype(np.uint8)
    (picture,) = open_pictures(write_svs(tmp_path / "a.svs", pixels, (2, 3, 4)), (1.0, 99.0))
    counts = counted(picture)
    region = picture.read(10, 10, 5, 5).numpy()
    assert counts == {(300, 400): 25, (150, 200): 0, (100, 133): 13_300, (75, 100): 0}
    low, high = np.percentile(halved(pixels, 3), (1, 99), method="inverted_cdf")
    expected = np.clip((pixels[10:15, 10:15].astype(float) - low) * 255 / (high - low), 0, 255)
    assert np.abs(region - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("size", "coarse", "expected"),
    [
        ((1000, 1001), (500, 500), (2.0, 2.0)),
        ((1001, 999), (501, 500), (2.0, 2.0)),
        ((4000, 4090), (250, 255), (16.0, 16.0)),
        ((1000, 1000), (300, 400), (1000 / 300, 2.5)),
        ((7, 9), (7, 9), (1.0, 1.0)),
    ],
)
def test_scales_are_whole_numbers_where_sides_were_rounded(
    size: tuple[int, int], coarse: tuple[int, int], expected: tuple[float, float]
) -> None:
    assert scale_between(size, coarse) == pytest.approx(expected)


def test_a_far_corner_is_where_it_is() -> None:
    """With levels that lack up to 15 pixels of a side, a mark near the end is at its place."""
    pixels = np.zeros((1615, 3215), np.uint8)
    pixels[1536:1568, 3136:3168] = 255
    coarse = halved(pixels, 16)

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        return coarse[top : top + height, left : left + width]

    full = picture_of(pixels, None)
    picture = Picture(full.path, "a", full.size, full._read, None, [Level(read, coarse.shape)])
    scaled = picture.rescaled(1 / 20)
    seen = scaled.read(0, 0, *scaled.size)[:, :, 0].double()
    y, x = (torch.nonzero(seen) + 0.5).double().mul(seen[seen > 0][:, None]).sum(0) / seen.sum()
    assert float(y) * full.size[0] / scaled.size[0] == pytest.approx(1552, abs=2)
    assert float(x) * full.size[1] / scaled.size[1] == pytest.approx(3152, abs=2)
