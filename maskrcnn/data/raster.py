"""Reading of PNG, JPEG, JPEG 2000 and Pillow's other formats, decoded whole when the first region is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from maskrcnn.data.colours import chosen_channels, pick
from maskrcnn.data.stored import Array, StoredPicture, check_claim, check_type, readable
from maskrcnn.errors import InputError

_JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
_ORIENTATION = 0x0112
_IHDR = 26  # bytes of a PNG up to its bit depth and colour type
_PNG_COLOURS = (2, 4, 6)  # RGB, grey with alpha, RGB with alpha


def open_raster(path: Path, channels: Sequence[int] | None, colours: bool) -> StoredPicture:
    """Open the picture of a file that is not a TIFF, with its EXIF orientation applied.

    Browsers, annotation tools (LabelMe, CVAT, Label Studio) and OpenCV apply it too.

    Args:
        path: PNG, JPEG, JPEG 2000, or another format of Pillow.
        channels: the channels to use; None: grey or RGB, without alpha.
        colours: False returns all channels, and palette indices instead of colours, as needed for label masks.

    Raises:
        InputError: the file is missing, damaged or animated, or :func:`chosen_channels` raises it.
    """
    with readable(path), _opened(path) as picture:
        orientation = _orientation(picture)
        height, width = reversed(picture.size) if orientation < 5 else picture.size
        check_claim(path, (height, width), max(1, len(picture.getbands())), path.stat().st_size)
        if getattr(picture, "is_animated", False):
            raise InputError(f"{path}: an animation, expected one picture")

    @cache
    def pixels() -> Array:
        decoded = _upright(_decode(path, colours), orientation)
        if decoded.shape[:2] != (height, width):
            raise InputError(f"{path}: {decoded.shape[0]}x{decoded.shape[1]} pixels, its header says {height}x{width}")
        check_type(path, decoded.dtype)
        planes = decoded if decoded.ndim == 3 else decoded[:, :, None]
        count = planes.shape[2]
        if not colours:
            return planes if count > 1 else planes[:, :, 0]
        return pick(planes, chosen_channels(count, count in (2, 4), channels, path))

    def read(top: int, left: int, rows: int, columns: int) -> Array:
        with readable(path):
            return pixels()[top : top + rows, left : left + columns]

    return StoredPicture(read, (height, width), path, path.name)


def _opened(path: Path) -> Image.Image:
    """Open a file with Pillow, reading its header only. PNG and JPEG are opened directly: Image.open refuses pictures
    above 179 megapixels, unless a limit is changed for the whole process."""
    start = _start(path)
    if start.startswith(b"\x89PNG"):
        return PngImageFile(path)
    if start.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(path)
    if start.startswith(_JPEG_2000):
        return Jpeg2KImageFile(path)
    return Image.open(path)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_IHDR)


def _decode(path: Path, colours: bool) -> Array:
    start = _start(path)
    if start.startswith(_JPEG_2000):
        return np.asarray(imagecodecs.jpeg2k_decode(path.read_bytes()))
    if start.startswith(b"\x89PNG") and start[24] == 16 and start[25] in _PNG_COLOURS:
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))  # Pillow keeps only the high byte
    with _opened(path) as picture:
        if colours and picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
            return np.asarray(picture.convert("RGB"))
        return np.asarray(picture)


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation: 1 upright, 2 to 8 mirrored or rotated; from 5 on height and width are exchanged."""
    # PngImageFile.getexif decodes the picture, since EXIF may follow the pixels
    value = Image.Image.getexif(picture).get(_ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: Array, orientation: int) -> Array:
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
