"""Exact percentiles of pictures that do not fit in memory, and stretching of intensities to 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskrcnn.data.stored import Array


def stretch(values: Array, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map low..high linearly to 0..255, clipped and rounded; if low equals high, everything becomes 0."""
    # float32 represents 8- and 16-bit values exactly; wider ones need float64 until the range is subtracted.
    wide: Any = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scale = 255 / (high - low) if high > low else 0.0
    return np.clip(np.rint((values.astype(wide) - wide(low)) * wide(scale)), 0, 255).astype(np.uint8)


def percentiles_of(bands: Callable[[], Iterator[Array]], percentiles: Sequence[float]) -> tuple[float, ...]:
    """Exact percentiles of pixels that are read in bands, as ``numpy.percentile(method="inverted_cdf")``.

    A radix selection: values are mapped to unsigned integers of the same order, and each pass over the pixels finds the
    next 16 bits of the percentiles, from the highest: one pass for 8 and 16 bits, two for 32.

    Args:
        bands: returns an iterator over all pixels at each call; finite integers or floats of one dtype.
        percentiles: in 0..100.
    """
    prefixes: list[int] = [0] * len(percentiles)
    ranks: list[int] = []
    bits = 0
    first = True
    kind: np.dtype[Any] | None = None
    while first or bits > 0:
        counts: list[npt.NDArray[np.int64]] = []
        for band in bands():
            keys = _ordered_keys(band.reshape(-1))
            if kind is None:
                kind, bits = band.dtype, keys.dtype.itemsize * 8
            digit = min(16, bits)
            if not counts:
                counts = [np.zeros(1 << digit, np.int64) for _ in percentiles]
            for index, prefix in enumerate(prefixes):
                if index and first:
                    counts[index] = counts[0]  # all percentiles share the first histogram
                    continue
                inside = keys if first else keys[keys >> np.array(bits, keys.dtype) == prefix]
                digits = inside
                if bits > digit or not first:  # else each value is a single digit
                    digits = (inside >> np.array(bits - digit, keys.dtype)) & np.array((1 << digit) - 1, keys.dtype)
                counts[index] += np.bincount(digits.astype(np.int64), minlength=1 << digit)
        if first:
            total = int(counts[0].sum())
            ranks = [max(1, int(np.ceil(p / 100 * total))) for p in percentiles]
        for index, of_digit in enumerate(counts):
            cumulative = np.cumsum(of_digit)
            found = int(np.searchsorted(cumulative, ranks[index]))
            ranks[index] -= int(cumulative[found] - of_digit[found])
            prefixes[index] = prefixes[index] << min(16, bits) | found
        bits -= min(16, bits)
        first = False
    assert kind is not None
    return tuple(_value_of_key(prefix, kind) for prefix in prefixes)


def _ordered_keys(values: Array) -> Array:
    """Unsigned integers in the order of the values: for floats, flip all bits if the sign is set, else the sign bit."""
    if values.dtype.kind == "u":
        return values
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    keys = np.ascontiguousarray(values).view(unsigned)
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    if values.dtype.kind == "i":
        return keys ^ sign
    return np.where(keys & sign, ~keys, keys | sign)


def _value_of_key(key: int, dtype: np.dtype[Any]) -> float:
    if dtype.kind == "u":
        return float(key)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    sign = 1 << (8 * dtype.itemsize - 1)
    if dtype.kind == "i":
        key ^= sign
    else:
        key = key ^ sign if key & sign else key ^ ((sign << 1) - 1)
    return float(np.array(key, unsigned).view(dtype))
