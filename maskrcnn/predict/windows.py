"""Windows that represent a large picture, for GroupNorm's statistics and the estimate of the cell diameter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskrcnn.data.picture import Picture
from maskrcnn.predict.tiles import Tile

LEAST = 3
"""Minimum side, in pixels of the overview, of the part whose variance is taken: that of a single pixel is 0."""

Ints = npt.NDArray[np.int64]


def representative_windows(picture: Picture, side: int, pixels: int) -> list[Tile]:
    """Choose windows of a picture with at most ``side`` pixels per side and ``pixels`` in total.

    At least one is returned. If they do not cover the picture, they are drawn with probabilities proportional to the
    variance of their pixels, so that the empty parts of a slide do not outweigh the tissue; the choice is
    deterministic.
    """
    tops, lefts, height, width = _grid(picture.size, side)
    count = max(1, pixels // (height * width))
    if len(tops) * len(lefts) <= count:
        return equal_windows(picture.size, side)
    overview = picture.overview
    rows = _spans(tops, height, picture.size[0], overview.shape[0])
    columns = _spans(lefts, width, picture.size[1], overview.shape[1])
    weights = (_variances(overview, rows, columns) + 1e-3).ravel()
    drawn = np.random.default_rng(0).choice(len(weights), count, replace=False, p=weights / weights.sum())
    places = (divmod(index, len(lefts)) for index in sorted(drawn.tolist()))
    return [Tile(int(tops[row]), int(lefts[column]), height, width) for row, column in places]


def equal_windows(size: tuple[int, int], side: int) -> list[Tile]:
    """Cover a picture of ``size`` (H, W) with windows of equal size and little overlap.

    Their sides are at most ``side``, and multiples of 32 if the picture is large enough, to avoid padding.
    """
    tops, lefts, height, width = _grid(size, side)
    return [Tile(top, left, height, width) for top in tops.tolist() for left in lefts.tolist()]


def _grid(size: tuple[int, int], side: int) -> tuple[Ints, Ints, int, int]:
    """The tops and lefts of :func:`equal_windows`, and their height and width."""
    side = max(32, side // 32 * 32)
    counts = [-(-length // side) for length in size]
    height, width = (min(length, -(-length // (32 * count)) * 32) for length, count in zip(size, counts, strict=True))
    tops, lefts = (
        np.round(np.arange(count) * (length - window) / max(1, count - 1)).astype(np.int64)
        for length, window, count in zip(size, (height, width), counts, strict=True)
    )
    return tops, lefts, height, width


def _spans(starts: Ints, length: int, full: int, few: int) -> tuple[Ints, Ints]:
    """Where windows that begin at ``starts`` begin and end in an overview that has ``few`` of ``full`` pixels."""
    scale = few / full
    own = min(few, max(LEAST, int(length * scale)))
    begin = np.clip(((starts + length / 2) * scale - own / 2).astype(np.int64), 0, few - own)
    return begin, begin + own


def _variances(
    overview: npt.NDArray[np.uint8], rows: tuple[Ints, Ints], columns: tuple[Ints, Ints]
) -> npt.NDArray[np.float64]:
    """Variance of the pixels in each window, averaged over the channels, float64 [rows, columns].

    From summed-area tables (Crow 1984): a slide has a million windows.
    """
    (top, bottom), (left, right) = rows, columns
    count = ((bottom - top)[:, None] * (right - left)).astype(np.float64)
    variance = np.zeros(count.shape)
    for channel in np.moveaxis(overview, 2, 0):
        means = []
        for values in (channel.astype(np.float64), np.square(channel, dtype=np.float64)):
            table = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            bands = table[bottom] - table[top]
            means.append((bands[:, right] - bands[:, left]) / count)
        variance += np.maximum(means[1] - means[0] ** 2, 0) / overview.shape[2]
    return variance
