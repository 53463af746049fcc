"""Damaged files and false headers: one line that names the file, and no memory allocated."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from maskrcnn.data.picture import open_pictures, read_image
from maskrcnn.data.reader import image_size, read_mask
from maskrcnn.errors import InputError
from tests.data.picture_files import BITS, BYTES, HEIGHT, WIDTH, in_memory, rasters, write, write_tiff

RNG = np.random.default_rng(0)


def damaged(content: bytes, rng: np.random.Generator, header: int) -> bytes:
    """Cut off, or with some bytes replaced, half of them where headers are."""
    if rng.random() < 0.2:
        return content[: rng.integers(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 2, 4, 16])):
        place = rng.integers(-header, header) % len(content) if rng.random() < 0.5 else rng.integers(len(content))
        changed[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    return bytes(changed)


def complaint(read: Callable[[Path], object], path: Path) -> str | None:
    """The message of the InputError that ``read`` raises, if it does."""
    try:
        read(path)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["tiff", "raster"])
def test_damaged_files_raise_one_line_or_are_read(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(1)
    files = [content for _, content, _ in rasters()]
    if kind == "tiff":
        files = []
        for compression, layout in product((None, "lzw", "zlib", "jpeg"), ({"tile": (16, 16)}, {"rowsperstrip": 8})):
            tifffile.imwrite(tmp_path / "whole", BYTES[:, :, :3], photometric="rgb", compression=compression, **layout)
            files.append((tmp_path / "whole").read_bytes())
        for options in (
            {"imagej": True},
            {"ome": True},
            {"byteorder": ">", "bigtiff": True},
            {"imagej": True, "truncate": True},
        ):
            tifffile.imwrite(tmp_path / "whole", np.stack([BYTES[:, :, 0]] * 3), photometric="minisblack", **options)
            files.append((tmp_path / "whole").read_bytes())
    path, read = tmp_path / "damaged", 0
    for number in range(40 * len(files) if kind == "tiff" else 12 * len(files)):
        path.write_bytes(damaged(files[number % len(files)], rng, 400 if kind == "tiff" else 40))
        for look in (read_image, read_mask, lambda path: [p.read(0, 0, *p.size) for p in open_pictures(path)[:9]]):
            said = complaint(look, path)
            assert said is None or (str(path) in said and "\n" not in said)
            read += said is None
    assert read > 20  # where what was changed does not matter


def png_that_claims(height: int, width: int) -> bytes:
    content = bytearray(in_memory(Image.fromarray(BYTES[:, :, 0] > 0), format="PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.mark.parametrize(
    ("height", "width"), [(0, 53), (37, 0), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1)]
)
def test_sizes_that_cannot_be_are_refused_before_memory_is_taken(tmp_path: Path, height: int, width: int) -> None:
    tiff, tiled, png = tmp_path / "a.tif", tmp_path / "t.tif", tmp_path / "a.png"
    write_tiff(tiff, BYTES.tobytes(), {HEIGHT: height, WIDTH: width, BITS: 8})
    tifffile.imwrite(tiled, BYTES[:, :, 0], tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tiled, mode="r+") as file:
        file.pages[0].tags["ImageLength"].overwrite(height)
        file.pages[0].tags["ImageWidth"].overwrite(width)
    png.write_bytes(png_that_claims(height, width))
    tracemalloc.start()
    for path, read in product((tiff, tiled, png), (open_pictures, read_image, read_mask, image_size)):
        with pytest.raises(
            InputError, match=rf"{path.name}: (\d+x\d+ pixels by its header|not a picture that can be read)"
        ) as error:
            read(path)
        assert "\n" not in str(error.value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e7


def test_large_pictures_need_no_limit_changed_for_the_process(tmp_path: Path) -> None:
    code = "import maskrcnn.data.picture, PIL.Image; print(PIL.Image.MAX_IMAGE_PIXELS)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == 1024**3 // 4 // 3
    (tmp_path / "large.png").write_bytes(png_that_claims(13_000, 14_000))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    with warnings.catch_warnings(action="error"):
        assert image_size(tmp_path / "large.png") == (13_000, 14_000)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_files_are_closed_with_their_pictures(tmp_path: Path) -> None:
    """Not at the next garbage collection: a folder may have more files than a process may open."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, BYTES[:, :, 0], compression="zlib")
    gc.collect()
    gc.disable()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        read_image(path)
        image_size(path)
        assert open_pictures(path)
        with pytest.raises(InputError):
            open_pictures(path, channels=[7])
    after = len(list(Path("/proc/self/fd").iterdir()))
    gc.enable()
    assert after <= before + 1


@pytest.mark.parametrize("keep", [0, 3, 60, 400, -10])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_truncated_files_are_named(tmp_path: Path, keep: int, compression: str | None) -> None:
    whole = write(tmp_path / "whole.tif", BYTES[:20, :30, :3], photometric="rgb", compression=compression).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[:keep])
    with pytest.raises(InputError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is text", b"II*\0" + b"\xff" * 100, b"\x89PNG\r\n\x1a\n" + b"x" * 50]
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.tif"
    path.write_bytes(content)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"image\.tif"):
            read(path)


def test_files_with_more_than_a_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="7 pictures"):
        read_image(write(tmp_path / "stack.tif", np.zeros((7, 20, 30), np.uint8), photometric="minisblack"))
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "nothing.tif")
    with pytest.raises(InputError, match="NaN or infinite"):
        read_image(write(tmp_path / "nan.tif", np.full((5, 5), np.nan, np.float32)))


def test_a_blank_picture_may_be_as_small_as_it_gets(tmp_path: Path) -> None:
    """The label image of a slide without a cell: 576 MB in 23 kB."""
    tile = imagecodecs.zstd_encode(bytes(4 << 20))
    tiles = iter([tile] * 144)
    tifffile.imwrite(
        tmp_path / "a.tif", tiles, shape=(12_000, 12_000), dtype=np.uint32, tile=(1024, 1024), compression="zstd"
    )
    (picture,) = open_pictures(tmp_path / "a.tif", None)
    assert picture.size == (12_000, 12_000)
    assert not picture.raw(1000, 9000, 500, 700).any()
