"""Files of pictures for the tests of readers, and what was written into them."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from PIL import Image

from maskrcnn.data.picture import Picture, open_pictures, read_image
from maskrcnn.data.reader import image_size

RNG = np.random.default_rng(0)
H, W = 37, 53
BYTES = RNG.integers(0, 256, (H, W, 4), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(BYTES[:4, :5, :3]).resize((W, H), Image.Resampling.BICUBIC))
REGIONS = [(0, 0, 70, 90), (0, 0, 1, 1), (69, 89, 1, 1), (13, 5, 40, 50), (32, 48, 38, 42)]
PERCENTILES = (2.0, 97.0)

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES = 273, 274, 277, 278, 279
COLOR_MAP, EXTRA_SAMPLES = 320, 338

OME = """<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"
 UUID="urn:uuid:{0}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="90"
 SizeY="70" SizeC="1" SizeZ="1" SizeT="2"><TiffData IFD="0" FirstT="0" PlaneCount="1"><UUID FileName="0.ome.tif">
urn:uuid:0</UUID></TiffData><TiffData IFD="0" FirstT="1" PlaneCount="1"><UUID FileName="1.ome.tif">
urn:uuid:1</UUID></TiffData></Pixels></Image></OME>"""
"""The header of one of two files, each with one time of the same picture."""


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
    """A little-endian TIFF of one strip, built byte by byte as no library writes it.

    The values of ``tags`` are written with 16 bits or, where one is larger, with 32.
    """
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


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


def only(path: Path, **options: object) -> Picture:
    (picture,) = open_pictures(path, **options)  # type: ignore[arg-type]
    return picture


def assert_regions(picture: Picture, whole: torch.Tensor) -> None:
    assert picture.size == tuple(whole.shape[:2])
    for top, left, height, width in REGIONS:
        region = picture.read(top, left, height, width)
        assert region.dtype == torch.uint8
        assert torch.equal(region, whole[top : top + height, left : left + width])


def in_memory(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def rasters() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Name, file, and pixels as written."""
    grey, rgb = BYTES[:, :, 0], BYTES[:, :, :3]
    wide = RNG.integers(0, 65536, (H, W, 4), dtype=np.uint16)
    for mode, array, expected in (
        ("L", grey, grey),
        ("LA", BYTES[:, :, :2], grey),
        ("RGB", rgb, rgb),
        ("RGBA", BYTES, rgb),
        ("1", grey > 99, grey > 99),
        ("I;16", wide[:, :, 0], wide[:, :, 0]),
    ):
        yield f"png-{mode}", in_memory(Image.fromarray(array), format="PNG"), expected
    for channels, shown in ((2, 0), (3, slice(3)), (4, slice(3))):
        coded = imagecodecs.png_encode(np.ascontiguousarray(wide[:, :, :channels]))
        yield f"png-16-bit-{channels}", coded, wide[:, :, shown]
        coded = imagecodecs.jpeg2k_encode(np.ascontiguousarray(wide[:, :, :channels]), level=0)
        yield f"jp2-16-bit-{channels}", coded, wide[:, :, shown]
    palette = Image.fromarray(rgb).quantize(16)
    yield "png-P", in_memory(palette, format="PNG"), np.asarray(palette.convert("RGB"))
    yield "png-P-clear", in_memory(palette, format="PNG", transparency=3), np.asarray(palette.convert("RGB"))
    for mode in ("L", "RGB", "CMYK"):
        coded = in_memory(Image.fromarray(SMOOTH).convert(mode), format="JPEG", quality=95)
        decoded = np.asarray(Image.open(io.BytesIO(coded)).convert("L" if mode == "L" else "RGB"))
        yield f"jpeg-{mode}", coded, decoded
    for codec in ("jp2", "j2k"):
        for channels, shown in ((1, 0), (2, 0), (3, slice(3)), (4, slice(3))):
            array = np.ascontiguousarray(BYTES[:, :, :channels].squeeze())
            yield (
                f"{codec}-{channels}",
                imagecodecs.jpeg2k_encode(array, level=0, codecformat=codec),
                BYTES[:, :, shown],
            )
    for format in ("BMP", "WEBP", "GIF", "PPM", "TGA"):
        options = {"lossless": True} if format == "WEBP" else {}
        picture = palette if format == "GIF" else Image.fromarray(rgb)
        yield format, in_memory(picture, format=format, **options), np.asarray(picture.convert("RGB"))


def assert_reads(path: Path, expected: np.ndarray, tolerance: int = 0) -> None:
    """Training and prediction give the same pixels, those of ``expected`` ([h, w] or [h, w, 3])."""
    (picture,) = open_pictures(path, PERCENTILES)
    height, width = expected.shape[:2]
    assert picture.size == image_size(path) == (height, width)
    raw = picture.raw(0, 0, height, width)
    assert raw.shape == expected.shape
    if tolerance:
        assert np.abs(raw.astype(int) - expected.astype(int)).max() <= tolerance
    else:
        np.testing.assert_array_equal(raw, expected)
    for percentiles in (PERCENTILES, None):
        trained = read_image(path, percentiles)
        (picture,) = open_pictures(path, percentiles)
        for top, left, h, w in ((0, 0, height, width), (5, 3, 17, 20), (height - 1, width - 1, 1, 1)):
            assert torch.equal(picture.read(top, left, h, w), trained[top : top + h, left : left + w])
    low, high = np.percentile(raw.astype(np.float64), PERCENTILES, method="inverted_cdf")
    if raw.dtype != bool and high > low:
        shown = np.clip((raw.astype(np.float64) - low) * 255 / (high - low), 0, 255)
        shown = shown if shown.ndim == 3 else np.repeat(shown[:, :, None], 3, axis=2)
        assert np.abs(read_image(path, PERCENTILES).numpy() - shown).max() <= 0.51
