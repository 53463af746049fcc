"""The windows of a large picture that represent the whole of it: for GroupNorm's statistics and the cells' diameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskrcnn.data.picture import Picture
from maskrcnn.predict.tiles import Tile

WINDOW = 512
"""Side of the windows in pixels, at most."""

REDUCED = 2048
"""Side of the reduced picture in which windows are compared."""


def representative_windows(
    picture: Picture, side: int, pixels: int, reduced: npt.NDArray[np.uint8] | None = None
) -> list[Tile]:
    """Windows of at most ``side`` (and :data:`WINDOW`) pixels a side that have at most ``pixels`` together.

    One is given in any case. Where that is not the whole picture, they are drawn with chances proportional to the
    variance of their pixels, so that the empty parts of a slide do not outweigh the tissue; the same at every call.
    ``reduced`` is ``picture.reduced(REDUCED)``, where it is at hand already.
    """
    windows = equal_windows(picture.size, min(side, WINDOW))
    most = max(1, pixels // (windows[0].height * windows[0].width))
    if len(windows) <= most:
        return windows
    chances = _variances(picture.reduced(REDUCED) if reduced is None else reduced, picture.size, windows)
    drawn = np.random.default_rng(0).choice(len(windows), most, replace=False, p=chances / chances.sum())
    return [windows[index] for index in sorted(drawn.tolist())]


def equal_windows(size: tuple[int, int], side: int) -> list[Tile]:
    """Windows of one size that cover a picture of ``size`` (H, W) with little overlap.

    Their sides are at most ``side``, and multiples of 32 where the picture is large enough: the network pads others.
    """
    side = max(32, side // 32 * 32)
    counts = [-(-length // side) for length in size]
    height, width = (min(length, -(-length // (32 * count)) * 32) for length, count in zip(size, counts, strict=True))
    tops, lefts = (
        [round(i * (length - part) / max(1, count - 1)) for i in range(count)]
        for length, part, count in zip(size, (height, width), counts, strict=True)
    )
    return [Tile(top, left, height, width) for top in tops for left in lefts]


def _variances(
    reduced: npt.NDArray[np.uint8], size: tuple[int, int], windows: Sequence[Tile]
) -> npt.NDArray[np.float64]:
    """float64 [N], above 0: the variance of each window's pixels in the reduced picture of one of ``size`` (H, W)."""
    pixels = reduced.astype(np.float32)
    down, across = (small / full for small, full in zip(pixels.shape[:2], size, strict=True))

    def variance(window: Tile) -> float:
        top, left = int(window.top * down), int(window.left * across)
        height, width = max(1, int(window.height * down)), max(1, int(window.width * across))
        return float(pixels[top : top + height, left : left + width].var(axis=(0, 1)).mean())

    return np.array([variance(window) for window in windows]) + 1e-3
