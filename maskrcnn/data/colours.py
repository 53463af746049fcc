"""Selection of the channels that become red, green and blue, and conversion of other colour spaces to RGB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from maskrcnn.data.stored import Array
from maskrcnn.errors import InputError

_UNSUPPORTED = ("SEPARATED", "CIELAB", "ICCLAB", "ITULAB", "CFA", "LOGL", "LOGLUV")

_DECODED_TO_RGB = (6, 7, 34892, 33007, 34927, 50001, 50002, 52546)
"""TIFF compressions (JPEG, WebP, JPEG XL) whose decoders return RGB where the header says YCbCr."""

_APERIO_YCBCR = 33003
"""Aperio's JPEG 2000 compression that holds YCbCr regardless of the header."""


def check_channels(channels: Sequence[int] | None) -> None:
    """Raise InputError unless ``channels`` is None or one to three numbers from 0."""
    if channels is not None and not 1 <= len(channels) <= 3:
        raise InputError(f"--channels: {len(channels)} given, expected one to three")
    if channels is not None and min(channels) < 0:
        raise InputError(f"--channels: {min(channels)} given, expected 0 or more")


def chosen_channels(count: int, alpha: bool, channels: Sequence[int] | None, path: Path) -> list[int]:
    """The channels to use: those requested, or by default all of grey and RGB pictures without alpha.

    Args:
        count: number of channels of the picture.
        alpha: whether the last channel is alpha.
        channels: the requested channels, or None.
        path: for error messages.

    Raises:
        InputError: a requested channel does not exist, or none was requested and there are not one or three colour
            channels: two or four fluorescence channels are neither grey nor RGB with alpha.
    """
    if channels is not None:
        if wrong := [channel for channel in channels if not 0 <= channel < count]:
            raise InputError(f"--channels: {path} has the channels 0 to {count - 1}, no {wrong[0]}")
        return list(channels)
    colours = count - alpha
    if colours not in (1, 3):
        raise InputError(f"{path}: {count} channels; choose one to three of them with --channels (from 0)")
    return list(range(colours))


def channels_to_read(count: int, channels: Sequence[int] | None, path: Path, colours: bool) -> list[int]:
    """The channels of a picture without alpha to read: :func:`chosen_channels`, or all where the values are needed as
    they are stored (``colours`` is False)."""
    return chosen_channels(count, False, channels, path) if colours else list(range(count))


def pick(pixels: Array, channels: Sequence[int]) -> Array:
    """Select ``channels`` of [h, w, c]: one gives [h, w]; to two a black third is added."""
    if len(channels) == 1:
        return pixels[:, :, channels[0]]
    in_order = list(channels) == list(range(len(channels)))
    chosen = pixels[:, :, : len(channels)] if in_order else pixels[:, :, list(channels)]
    if len(channels) == 2:
        return np.concatenate([chosen, np.zeros_like(chosen[:, :, :1])], axis=2)
    return chosen


def is_palette(page: tifffile.TiffPage) -> bool:
    """Whether the values of a TIFF page are indices into a colour table."""
    return page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None


def is_ycbcr(page: tifffile.TiffPage) -> bool:
    """Whether the decoded values of a TIFF page are YCbCr."""
    if page.compression == _APERIO_YCBCR:
        return True
    return page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression not in _DECODED_TO_RGB


def conversion(page: tifffile.TiffPage, path: Path) -> Callable[[Array], Array] | None:
    """The function that converts values of a TIFF page, [h, w, channels], to RGB, or to grey with bright as high.

    None if no conversion is needed. Raises InputError for unsupported colour spaces.
    """
    kind = getattr(page.photometric, "name", "")
    if kind in _UNSUPPORTED:
        raise InputError(f"{path}: colours stored as {kind}, expected grey or RGB")
    if is_palette(page):
        assert page.colormap is not None
        colours = _palette(page.colormap)
        return lambda pixels: colours[pixels[:, :, 0].astype(np.intp)]
    if is_ycbcr(page):
        return _ycbcr_conversion(page, path)
    if kind == "MINISWHITE":
        bits = page.bitspersample
        return lambda pixels: _inverted(pixels, bits)
    return None


def _palette(table: Array) -> npt.NDArray[np.uint8]:
    """Colour table [3, n] of 16-bit values as [n, 3] of 8-bit values. Some programs write 8-bit values against the
    TIFF standard: as in libtiff, a table without values above 255 is taken as 8-bit."""
    entries = np.moveaxis(table, 0, 1)
    return (entries if entries.max(initial=0) < 256 else entries >> 8).astype(np.uint8)


def _inverted(pixels: Array, bits: int) -> Array:
    """Invert values that are low for bright pixels; floats are negated."""
    if pixels.dtype.kind == "f":
        return -pixels
    if pixels.dtype.kind == "u" and bits < 8 * pixels.dtype.itemsize:
        return ((1 << bits) - 1) - pixels
    return ~pixels


def _ycbcr_conversion(page: tifffile.TiffPage, path: Path) -> Callable[[Array], Array]:
    """YCbCr to RGB (TIFF 6.0, section 21) with the luma weights and ranges of the page; the defaults for Aperio."""
    if page.dtype != np.uint8 or page.samplesperpixel != 3:
        raise InputError(f"{path}: YCbCr of {page.samplesperpixel} channels of {page.dtype}, expected three of uint8")
    tags: Any = {} if page.compression == _APERIO_YCBCR else page.tags
    red, green, blue = _fractions(tags, "YCbCrCoefficients", (0.299, 0.587, 0.114))
    ranges = _fractions(tags, "ReferenceBlackWhite", (0, 255, 128, 255, 128, 255))
    black, white = np.array(ranges[0::2]), np.array(ranges[1::2])
    scale = np.array([255, 127, 127]) / (white - black)

    def convert(pixels: Array) -> Array:
        y, cb, cr = np.moveaxis((pixels - black) * scale, 2, 0)
        r, b = y + (2 - 2 * red) * cr, y + (2 - 2 * blue) * cb
        g = (y - red * r - blue * b) / green
        return np.clip(np.rint(np.stack([r, g, b], axis=2)), 0, 255).astype(np.uint8)

    return convert


def _fractions(tags: Any, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """The value of a tag of fractions, which tifffile returns as alternating numerators and denominators."""
    tag = tags.get(name)
    if tag is None:
        return default
    return tuple(a / b for a, b in zip(tag.value[0::2], tag.value[1::2], strict=True))
