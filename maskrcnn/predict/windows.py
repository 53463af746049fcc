"""Windows that represent a large picture, for GroupNorm's statistics and the estimate of the cell diameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskrcnn.data.picture import Picture
from maskrcnn.predict.tiles import Tile

WINDOW = 512
"""Maximum side of the windows in pixels."""

REDUCED = 2048
"""Maximum side of the reduced picture in which windows are compared."""


def representative_windows(
    picture: Picture, side: int, pixels: int, reduced: npt.NDArray[np.uint8] | None = None
) -> list[Tile]:
    """Choose windows of a picture with at most ``side`` (and :data:`WINDOW`) pixels per side and ``pixels`` in total.

    At least one is returned. If they do not cover the picture, they are drawn with probabilities proportional to the
    variance of their pixels, so that the empty parts of a slide do not outweigh the tissue; the choice is
    deterministic. ``reduced`` is ``picture.reduced(REDUCED)`` if it was computed already.
    """
    windows = equal_windows(picture.size, min(side, WINDOW))
    count = max(1, pixels // (windows[0].height * windows[0].width))
    if len(windows) <= count:
        return windows
    weights = _variances(picture.reduced(REDUCED) if reduced is None else reduced, picture.size, windows)
    drawn = np.random.default_rng(0).choice(len(windows), count, replace=False, p=weights / weights.sum())
    return [windows[index] for index in sorted(drawn.tolist())]


def equal_windows(size: tuple[int, int], side: int) -> list[Tile]:
    """Cover a picture of ``size`` (H, W) with windows of equal size and little overlap.

    Their sides are at most ``side``, and multiples of 32 if the picture is large enough, to avoid padding.
    """
    side = max(32, side // 32 * 32)
    counts = [-(-length // side) for length in size]
    height, width = (min(length, -(-length // (32 * count)) * 32) for length, count in zip(size, counts, strict=True))
    tops, lefts = (
        [round(i * (length - window) / max(1, count - 1)) for i in range(count)]
        for length, window, count in zip(size, (height, width), counts, strict=True)
    )
    return [Tile(top, left, height, width) for top in tops for left in lefts]


def _variances(
    reduced: npt.NDArray[np.uint8], size: tuple[int, int], windows: Sequence[Tile]
) -> npt.NDArray[np.float64]:
    """Variance of each window's pixels in the reduced version of a picture of ``size`` (H, W), float64 [N], above 0."""
    pixels = reduced.astype(np.float32)
    scale_y, scale_x = (small / full for small, full in zip(pixels.shape[:2], size, strict=True))

    def variance(window: Tile) -> float:
        top, left = int(window.top * scale_y), int(window.left * scale_x)
        height, width = max(1, int(window.height * scale_y)), max(1, int(window.width * scale_x))
        return float(pixels[top : top + height, left : left + width].var(axis=(0, 1)).mean())

    return np.array([variance(window) for window in windows]) + 1e-3
