"""PNG, JPEG, JPEG 2000 and what else Pillow reads: one picture, decoded whole when its first region is read."""

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
_IHDR = 26  # bytes of a PNG up to its bit depth and its type of colours
_PNG_COLOURS = (2, 4, 6)  # RGB, grey with alpha, RGB with alpha


def open_raster(path: Path, channels: Sequence[int] | None, colours: bool) -> StoredPicture:
    """The picture of a file that is no TIFF, turned upright as its EXIF orientation says.

    So do browsers, the tools in which people draw on photographs (LabelMe, CVAT, Label Studio) and OpenCV.

    Args:
        path: PNG, JPEG, JPEG 2000, or another format of Pillow's.
        channels: those to be shown; None: grey or RGB, without alpha.
        colours: False gives all channels, and of a palette the numbers: label masks are stored so.

    Raises:
        InputError: for a file that is missing, damaged or animated, and where :func:`chosen_channels` does.
    """
    with readable(path), _opened(path) as picture:
        turned = _orientation(picture)
        height, width = reversed(picture.size) if turned < 5 else picture.size
        check_claim(path, (height, width), max(1, len(picture.getbands())), path.stat().st_size)
        if getattr(picture, "is_animated", False):
            raise InputError(f"{path}: an animation, expected one picture")

    @cache
    def pixels() -> Array:
        found = _upright(_decode(path, colours), turned)
        if found.shape[:2] != (height, width):
            raise InputError(f"{path}: {found.shape[0]}x{found.shape[1]} pixels, its header says {height}x{width}")
        check_type(path, found.dtype)
        planes = found if found.ndim == 3 else found[:, :, None]
        count = planes.shape[2]
        if not colours:
            return planes if count > 1 else planes[:, :, 0]
        return pick(planes, chosen_channels(count, count in (2, 4), channels, path))

    def read(top: int, left: int, rows: int, columns: int) -> Array:
        with readable(path):
            return pixels()[top : top + rows, left : left + columns]

    return StoredPicture(read, (height, width), path, path.name)


def _opened(path: Path) -> Image.Image:
    """The file's header. PNG and JPEG are opened directly: Image.open refuses pictures of 179 megapixels, unless a
    limit is changed for the whole process."""
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
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))  # Pillow keeps the high byte alone
    with _opened(path) as picture:
        if colours and picture.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
            return np.asarray(picture.convert("RGB"))
        return np.asarray(picture)


def _orientation(picture: Image.Image) -> int:
    """EXIF's number: 1 upright, 2 to 8 mirrored or turned; from 5 on with the sides exchanged."""
    # PngImageFile's own getexif decodes the picture to look for an entry behind it
    found = Image.Image.getexif(picture).get(_ORIENTATION)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(pixels: Array, orientation: int) -> Array:
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
