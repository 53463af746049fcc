"""A check of LZW data, for imagecodecs decodes some damaged data with what happens to be in memory."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

_CLEAR, _END, _FIRST = 256, 257, 258  # the first is the first code for more than one byte
_MOST = 5120  # codes; imagecodecs refuses more


def check_lzw(data: bytes | bytearray) -> None:
    """Raise ValueError unless each clear code is followed by a single byte (TIFF 6.0, section 13).

    The table is empty after a clear code. imagecodecs' decoder copies the bytes of a code that is not in it from
    wherever the memory of the table points, which ends the process, or changes other memory. All other damage it
    detects itself.
    """
    if len(data) < 2:
        return
    least_first = data[0] == 0 and bool(data[1] & 1)  # the least significant bits first, in files before TIFF 6.0
    # the four bytes from each byte on
    words = np.ndarray((len(data),), "<u4" if least_first else ">u4", data + b"\0\0\0", strides=(1,))
    widths, ends = _codes(least_first)
    position, size = 0, 8 * len(data)  # in bits
    while position + 9 <= size:
        # the codes up to the last one, as if none cleared the table
        count = np.searchsorted(ends, size - position, side="right")
        starts = ends[:count] - widths[:count] + position
        shift = starts & 7 if least_first else 32 - widths[:count] - (starts & 7)
        codes = words[starts >> 3] >> shift & (1 << widths[:count]) - 1
        if codes[0] >= _FIRST:
            raise ValueError("damaged LZW data: a code that is not in its table")
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        if len(stops) == 0 or codes[stops[0]] == _END:
            return
        position += int(ends[stops[0]])


@functools.cache
def _codes(least_first: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The widths of the codes after a clear code, and where they end, in bits."""
    # they become longer with the table, which has one more for each code but the first; in TIFF 6.0 one too early
    sizes = _FIRST + np.maximum(np.arange(_MOST - _FIRST) - 1, 0) + (not least_first)
    widths = 9 + np.digitize(sizes, (512, 1024, 2048))
    return widths, np.cumsum(widths)
