"""Windows that represent a large picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskrcnn.data.arrays import picture_of
from maskrcnn.predict.windows import equal_windows, representative_windows


def slide(side: int, tissue: slice) -> Any:
    """What is asked of a picture of side x side pixels: its size, and an overview that is empty but for a square."""
    overview = np.full((2048, 2048, 3), 240, np.uint8)
    part = overview[tissue, tissue]
    part[:] = np.random.default_rng(0).integers(100, 200, part.shape)
    return SimpleNamespace(size=(side, side), overview=overview)


@pytest.mark.parametrize(("side", "window"), [(20_000, 256), (70_000, 64), (140_000, 128)])
def test_windows_of_a_slide_lie_in_its_tissue(side: int, window: int) -> None:
    """A hundredth of the slide; windows of 26 pixels of the overview down to 2."""
    windows = representative_windows(slide(side, slice(1000, 1200)), window, 16 * window**2)
    first, last = 1000 * side / 2048, 1200 * side / 2048
    inside = [first - window <= w.top < last + window and first - window <= w.left < last + window for w in windows]
    assert len(set(windows)) == 16
    assert sum(inside) >= 15


def test_windows_with_more_contrast_are_drawn_more_often() -> None:
    rng = np.random.default_rng(0)
    image = np.full((640, 640), 128.0)
    image[::2] += rng.normal(0, 4, (320, 640))
    image[320:] += rng.normal(0, 12, (320, 640))  # about 17 times the variance in the lower half
    picture = picture_of(image.round().clip(0, 255).astype(np.uint8), None)
    assert len(equal_windows(picture.size, 64)) == 100
    drawn = [window.top for window in representative_windows(picture, 64, 20 * 64**2)]
    assert len(drawn) == 20
    assert 15 <= sum(top >= 320 for top in drawn) < 20


def test_a_rescaled_picture_has_the_overview_of_its_original() -> None:
    picture = picture_of(np.random.default_rng(0).integers(0, 255, (90, 120), dtype=np.uint8), None)
    assert picture.rescaled(3.0).overview is picture.overview
    assert picture.overview.shape == (90, 120, 3)
