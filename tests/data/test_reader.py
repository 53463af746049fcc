"""The one reader: training's pixels are prediction's, and both are what was written, for files of every kind."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from maskrcnn.data.picture import open_pictures, read_image
from maskrcnn.data.reader import MAX_ID, open_stored, read_mask
from maskrcnn.errors import InputError
from tests.data.picture_files import (
    BITS,
    BYTES,
    COLOR_MAP,
    EXTRA_SAMPLES,
    HEIGHT,
    PHOTOMETRIC,
    SAMPLES,
    SMOOTH,
    WIDTH,
    H,
    W,
    assert_reads,
    packed,
    rasters,
    write,
    write_tiff,
)

RNG = np.random.default_rng(1)


def values(dtype: np.dtype[Any], channels: int) -> np.ndarray:
    if dtype.kind == "b":
        found = BYTES[:, :, :channels] > 99
    elif dtype.kind == "f":
        found = (BYTES[:, :, :channels].astype(np.float64) / 7 - 11).astype(dtype)
    else:
        found = np.frombuffer(RNG.bytes(H * W * channels * dtype.itemsize), dtype).reshape(H, W, channels)
    return found[:, :, 0] if channels == 1 else found


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"rowsperstrip": 5, "compression": "lzw"},
    {"rowsperstrip": 8, "compression": "zlib", "predictor": True},
    {"tile": (16, 32), "compression": "zstd"},
    {"tile": (16, 16), "bigtiff": True},
    {"rowsperstrip": 5, "compression": "packbits"},
    {"tile": (32, 16), "compression": "lzma"},
]
KINDS: list[tuple[int, dict[str, Any]]] = [
    (1, {"photometric": "minisblack"}),
    (1, {"photometric": "miniswhite"}),
    (3, {"photometric": "rgb"}),
    (3, {"photometric": "rgb", "planarconfig": "separate"}),
    (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    (4, {"photometric": "rgb", "extrasamples": ["unspecified"], "planarconfig": "separate"}),
    (2, {"photometric": "minisblack", "extrasamples": ["assocalpha"], "planarconfig": "contig"}),
]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8", "?"])
def test_tiffs_of_every_layout(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(dtype)
    for number, (layout, (channels, options)) in enumerate(product(LAYOUTS, KINDS)):
        if dtype == "?" and (channels != 1 or "predictor" in layout or layout.get("compression") == "lzma"):
            continue
        array = values(kind, channels)
        path = tmp_path / f"{number}.tif"
        stored = np.moveaxis(array, 2, 0) if options.get("planarconfig") == "separate" else array
        predictor = {"predictor": False} if kind.kind == "f" and "predictor" in layout else {}
        tifffile.imwrite(path, stored, byteorder="<>"[number % 2], **layout | options | predictor)
        witness = tifffile.imread(path)
        np.testing.assert_array_equal(witness, stored)
        expected = array if array.ndim == 2 else array[:, :, : 3 if channels > 2 else 1].squeeze()
        if options["photometric"] == "miniswhite":
            expected = ~expected if kind.kind != "f" else -expected
        assert_reads(path, expected)


@pytest.mark.parametrize("bits", range(1, 33))
def test_tiffs_of_any_number_of_bits(tmp_path: Path, bits: int) -> None:
    array = RNG.integers(0, 1 << bits, (H, W), dtype=np.uint32)
    expected = array.astype(bool) if bits == 1 else array
    tags: dict[int, Any] = {HEIGHT: H, WIDTH: W, BITS: bits}
    assert_reads(write_tiff(tmp_path / "a.tif", packed(array, bits), tags), expected)
    inverted = write_tiff(tmp_path / "i.tif", packed(array, bits), tags | {PHOTOMETRIC: 0})
    assert_reads(inverted, ~expected if bits == 1 else (1 << bits) - 1 - expected.astype(np.int64))
    np.testing.assert_array_equal(open_stored(tmp_path / "a.tif", colours=False)[0].whole(), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
def test_palettes_of_tiffs(tmp_path: Path, bits: int, depth: int, alpha: bool) -> None:
    """Of 16 bits as TIFF wants them, of 8 bits as some programs write them, with alpha; masks are the numbers."""
    indices = RNG.integers(0, 1 << bits, (H, W, 2), dtype=np.uint32)
    table = RNG.integers(0, 256, (3, 1 << bits))
    table[0, 0] = 255
    tags: dict[int, Any] = {HEIGHT: H, WIDTH: W, BITS: bits, PHOTOMETRIC: 3}
    tags[COLOR_MAP] = (table * 257 if depth == 16 else table).reshape(-1).tolist()
    if alpha:
        tags |= {SAMPLES: 2, EXTRA_SAMPLES: 2, BITS: (bits, bits)}
    path = write_tiff(tmp_path / "p.tif", packed(indices if alpha else indices[:, :, 0], bits), tags)
    assert_reads(path, np.moveaxis(table[:, indices[:, :, 0]], 0, 2))
    if bits in (8, 16) and depth == 16 and not alpha:
        assert bits == 16 or np.array_equal(np.asarray(Image.open(path).convert("RGB")), read_image(path, None))
    if not alpha:
        np.testing.assert_array_equal(read_mask(path), indices[:, :, 0])


@pytest.mark.parametrize("compression", ["jpeg", "webp", "jpegxl", "jpeg2000", "png", "deflate"])
@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
def test_tiffs_with_codecs_of_pictures(tmp_path: Path, compression: str, layout: dict) -> None:
    options: dict[str, Any] = {"photometric": "rgb", "compression": compression, **layout}
    if compression == "jpeg":
        options |= {"photometric": "ycbcr", "subsampling": (1, 1)}
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, **options)
    assert_reads(tmp_path / "a.tif", tifffile.imread(tmp_path / "a.tif"))
    lossless = {"compressionargs": {"level": 0, "lossless": True}} if compression == "webp" else {}
    if compression != "jpeg":
        tifffile.imwrite(tmp_path / "a.tif", SMOOTH, **options, **lossless)
        assert np.abs(read_image(tmp_path / "a.tif", None).numpy().astype(int) - SMOOTH).max() <= 40


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("YCbCr"))


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("separate", [False, True])
def test_ycbcr_without_jpeg(tmp_path: Path, compression: str | None, separate: bool) -> None:
    stored = np.moveaxis(ycbcr(SMOOTH), 2, 0) if separate else ycbcr(SMOOTH)
    config = "separate" if separate else "contig"
    path = tmp_path / "y.tif"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=config, compression=compression)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    with pytest.raises(InputError, match=r"y\.tif: .* chroma subsampling"):
        read_image(path)
    tifffile.imwrite(
        path,
        stored,
        photometric="rgb",
        planarconfig=config,
        compression=compression,
        extratags=[(530, "H", 2, (1, 1), True)],
    )
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    assert_reads(path, np.asarray(Image.fromarray(ycbcr(SMOOTH), "YCbCr").convert("RGB")), tolerance=1)


@pytest.mark.parametrize(("number", "stored"), [(33003, ycbcr(SMOOTH)), (33005, SMOOTH), (34712, SMOOTH)])
def test_jpeg_2000_of_slides(tmp_path: Path, number: int, stored: np.ndarray) -> None:
    """Aperio's 33003 is YCbCr, whatever its header says."""
    path = tmp_path / "s.svs"
    coded = imagecodecs.jpeg2k_encode(
        np.ascontiguousarray(np.pad(stored, ((0, 11), (0, 11), (0, 0)))), level=0, mct=False
    )
    tifffile.imwrite(
        path, iter([coded]), shape=(H, W, 3), dtype=np.uint8, photometric="rgb", compression=number, tile=(48, 64)
    )
    rgb = Image.fromarray(stored, "YCbCr").convert("RGB") if number == 33003 else SMOOTH
    assert_reads(path, np.asarray(rgb), tolerance=1 if number == 33003 else 0)


@pytest.mark.parametrize(("name", "content", "expected"), [pytest.param(*case, id=case[0]) for case in rasters()])
def test_other_formats(tmp_path: Path, name: str, content: bytes, expected: np.ndarray) -> None:
    (tmp_path / name).write_bytes(content)
    assert_reads(tmp_path / name, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, format: str) -> None:
    """As browsers, the usual tools for drawing masks on photographs, and Pillow's exif_transpose turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    Image.fromarray(SMOOTH).save(path, format=format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    assert_reads(path, np.asarray(ImageOps.exif_transpose(Image.open(path))))


def test_masks_go_through_the_same_reader(tmp_path: Path) -> None:
    ids = RNG.integers(0, 16, (H, W), dtype=np.uint8)
    palette = Image.fromarray(ids, "P")
    palette.putpalette(BYTES.reshape(-1)[: 3 * 16].tobytes())
    palette.save(tmp_path / "class1.png")
    tifffile.imwrite(tmp_path / "class1.tif", ids.astype(">f4"), tile=(16, 16), compression="lzw", byteorder=">")
    tifffile.imwrite(tmp_path / "class2.tif", ids, photometric="miniswhite")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_mask(path), ids)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(BYTES[:, :, channel]) for channel in range(3)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="an animation, expected one picture"):
            open_pictures(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_masks_of_any_type_with_gaps(tmp_path: Path, dtype: type) -> None:
    mask = np.zeros((20, 30), dtype)
    mask[2:5, 3:9], mask[10:12, 20:25] = 7, 201
    plane = read_mask(write(tmp_path / "class1.tif", mask, compression="lzw"))
    assert plane.dtype == torch.int32
    assert np.array_equal(plane.numpy(), mask.astype(np.int32))


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "negative id -1"), (2.5, "fractional id 2.5"), (np.nan, "NaN"), (np.inf, "NaN or inf"), (1e12, "id 1e")],
)
def test_ids_that_are_none(tmp_path: Path, value: float, message: str) -> None:
    mask = np.zeros((5, 5))
    mask[2, 2] = value
    path = write(tmp_path / "class1.tif", mask)
    with pytest.raises(InputError, match=message) as error:
        read_mask(path)
    assert str(path) in str(error.value)


def test_the_largest_id(tmp_path: Path) -> None:
    mask = np.zeros((5, 5))
    mask[2, 2] = MAX_ID
    assert read_mask(write(tmp_path / "class1.tif", mask)).max() == MAX_ID


def test_a_mask_of_three_channels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 channels"):
        read_mask(write(tmp_path / "class1.tif", BYTES[:, :, :3], photometric="rgb"))
