"""TIFFs that no library here writes: built byte by byte, so that they are a witness of their own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
COLOR_MAP, EXTRA_SAMPLES = 320, 338


def packed(values: np.ndarray, bits: int) -> bytes:
    """Unsigned integers [h, w] or [h, w, samples], each in ``bits`` bits from the highest; rows end on whole bytes.

    Those of 16 and 32 bits are little-endian, as the file is.
    """
    if bits in (16, 32):
        return values.astype(f"<u{bits // 8}").tobytes()
    rows = values.reshape(len(values), -1).astype(">u4")
    digits = np.unpackbits(rows.view(np.uint8), axis=1).reshape(*rows.shape, 32)[:, :, 32 - bits :]
    return np.packbits(digits.reshape(len(rows), -1), axis=1).tobytes()


def write_tiff(path: Path, pixels: bytes, tags: dict[int, int | Sequence[int]]) -> Path:
    """A little-endian TIFF of one strip; ``tags`` with values of 16 or, where one is larger, of 32 bits."""
    height = tags[HEIGHT]
    entries = {COMPRESSION: 1, PHOTOMETRIC: 1, SAMPLES: 1, ROWS_PER_STRIP: height, **tags}
    entries |= {STRIP_OFFSETS: 8, STRIP_BYTES: len(pixels)}
    at = 8 + len(pixels) + len(pixels) % 2
    behind = at + 2 + 12 * len(entries) + 4
    directory, long_values = struct.pack("<H", len(entries)), b""
    for tag, value in sorted(entries.items()):
        values = [value] if isinstance(value, int) else list(value)
        kind, code = (4, "I") if max(values) > 65535 or tag in (STRIP_OFFSETS, STRIP_BYTES) else (3, "H")
        data = struct.pack(f"<{len(values)}{code}", *values)
        if len(data) > 4:
            data, long_values = struct.pack("<I", behind + len(long_values)), long_values + data
        directory += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    start = b"II*\0" + struct.pack("<I", at)
    path.write_bytes(start + pixels.ljust(at - 8, b"\0") + directory + struct.pack("<I", 0) + long_values)
    return path
