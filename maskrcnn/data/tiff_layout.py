"""What the axes of a TIFF's series mean: the pictures of a stack, their channels, and these as grey or RGB."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from maskrcnn.data.colours import chosen_channels, conversion, is_palette, is_ycbcr, pick
from maskrcnn.data.stored import Array, place_of
from maskrcnn.data.tiff_segments import Segments
from maskrcnn.errors import InputError

Region = Callable[[int, int, int, int, int], Array]
"""(plane, top, left, height, width) -> [height, width, samples]."""

_MAX_UNNAMED_CHANNELS = 4
"""An axis of unknown meaning holds channels if it is at most this long, else pages."""


@dataclass(frozen=True)
class Layout:
    """Meaning of the axes of a series.

    Attributes:
        axes: names of the axes before height and width, as tifffile calls them.
        lengths: their lengths.
        channel_axis: index of the one that counts channels, or None.
        count: number of channels of a picture.
        of_samples: whether the channels are the samples of a TIFF's pixels.
        rows: (H, W) if each row of the picture is a page, else None.
    """

    axes: str
    lengths: tuple[int, ...]
    channel_axis: int | None
    count: int
    of_samples: bool
    rows: tuple[int, int] | None = None

    @staticmethod
    def of(series: Any, path: Path) -> Layout:
        axes = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"]
        names, lengths = "".join(a for a, _ in axes), tuple(n for _, n in axes)
        y = names.find("Y")
        last = names[y + 2 :]
        if y < 0 or names[y : y + 2] != "YX" or last not in ("", "S", "C", "Q"):
            raise InputError(f"{path}: axes {series.axes} of size {series.shape}, expected pictures of height x width")
        if last:
            return Layout(names[:y], lengths[:y], None, lengths[-1], True)
        if names == "QYX" and lengths[2] <= _MAX_UNNAMED_CHANNELS < min(
            lengths[:2]
        ):  # an array [H, W, C] without metadata
            return Layout("", (), None, lengths[2], False, lengths[:2])
        channel_axes = [index for index, axis in enumerate(names[:y]) if axis in "SC"]
        if not channel_axes and y > 0 and names[y - 1] == "Q" and lengths[y - 1] <= _MAX_UNNAMED_CHANNELS:
            channel_axes = [y - 1]
        axis = channel_axes[-1] if channel_axes else None
        count = 1 if axis is None else lengths[axis]
        return Layout(names[:y], lengths[:y], axis, count, axis is not None and names[axis] == "S")

    def planes(self, channels: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
        """Each picture's place in the series, by its time and depth, and the indices of the planes with ``channels``.

        The place is "" for a single picture, and where an axis has another meaning or none.
        """
        axis = self.channel_axis
        planes = np.arange(math.prod(self.lengths)).reshape(self.lengths)
        planes = planes[..., None] if axis is None else np.moveaxis(planes, axis, -1)[..., list(channels)]
        names = self.axes if axis is None else self.axes[:axis] + self.axes[axis + 1 :]
        for indices in np.ndindex(planes.shape[:-1]):
            place = place_of(**dict(zip(names.lower(), indices, strict=True))) if set(names) <= set("TZ") else ""
            yield place, planes[indices].tolist()


@dataclass(frozen=True)
class ChannelsToColours:
    """Conversion of stored channels to grey or RGB.

    Attributes:
        stored: the channels to read.
        convert: converts stored values to grey or RGB; None: not needed.
        picked: the channels to use after reading and conversion.
    """

    stored: list[int]
    convert: Callable[[Array], Array] | None
    picked: list[int]

    @staticmethod
    def of(layout: Layout, page: tifffile.TiffPage, channels: Sequence[int] | None, path: Path) -> ChannelsToColours:
        convert = conversion(page, path)
        if is_palette(page) and layout.channel_axis is not None and not layout.of_samples:
            convert = None  # ImageJ's lookup table for the display of a channel
        mixed = convert is not None and (is_palette(page) or is_ycbcr(page))
        count = 3 if mixed else layout.count
        alpha = layout.of_samples and not mixed and _has_alpha(page, count)
        chosen = chosen_channels(count, alpha, channels, path)
        if mixed or layout.channel_axis is None:
            return ChannelsToColours(list(range(layout.count)), convert, chosen)
        return ChannelsToColours(chosen, convert, list(range(len(chosen))))  # planes that are not used are not read

    def __call__(self, pixels: Array) -> Array:
        return pick(pixels if self.convert is None else self.convert(pixels), self.picked)


def _has_alpha(page: tifffile.TiffPage, count: int) -> bool:
    """Whether the last sample is alpha. A fourth sample after RGB is, even if the header does not say so."""
    if count == 4 and page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR):
        return True
    alphas = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
    return count in (2, 4) and bool(page.extrasamples) and page.extrasamples[-1] in alphas


def of_rows(segments: Segments, count: int) -> Region:
    """Region reader [height, width, count] for series whose page ``y`` is row ``y``, [width, count]."""

    def region(_: int, top: int, left: int, height: int, width: int) -> Array:
        rows = range(top, top + height)
        return np.stack([segments.region(row, left, 0, width, count)[:, :, 0] for row in rows])

    return region
