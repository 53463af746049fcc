"""A check of LZW data, for imagecodecs decodes some damaged data with what happens to be in memory."""

from __future__ import annotations

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
    order = _Order(data)
    position, end = 0, 8 * len(data)
    while position + 9 <= end:
        codes, ends = order.run(position)
        if codes[0] >= _FIRST:
            raise ValueError("damaged LZW data: a code that is not in its table")
        stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        if len(stops) == 0 or codes[stops[0]] == _END:
            return
        position = int(ends[stops[0]])


class _Order:
    """The codes of LZW data, with the most significant bits first, or, in files before TIFF 6.0, the least."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.bits = 8 * len(data)
        self.least_first = data[0] == 0 and bool(data[1] & 1)
        order = "<u4" if self.least_first else ">u4"
        self.words = np.ndarray((len(data),), order, data + b"\0\0\0", strides=(1,))  # from each byte on
        # codes become longer with the table, which has one more for each code but the first; in TIFF 6.0 one too early
        sizes = _FIRST + np.maximum(np.arange(_MOST - _FIRST) - 1, 0) + (not self.least_first)
        self.widths = np.digitize(sizes, (512, 1024, 2048)) + 9
        self.masks = (1 << self.widths.astype(np.uint32)) - 1
        self.ends = np.cumsum(self.widths, dtype=np.int64)

    def run(self, position: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The codes from bit ``position`` on, where the table is empty, and the bits at which they end, as if no code
        cleared the table."""
        count = np.searchsorted(self.ends, self.bits - position, side="right")
        ends = self.ends[:count] + position
        starts = ends - self.widths[:count]
        values = self.words[starts >> 3].astype(np.uint32)
        shift = starts & 7 if self.least_first else 32 - self.widths[:count] - (starts & 7)
        return values >> shift.astype(np.uint32) & self.masks[:count], ends
