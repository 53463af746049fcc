"""The one reader: training's pixels are prediction's, and both are what was written, for files of every kind."""

from __future__ import annotations

import gc
import io
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
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
from maskrcnn.data.reader import image_size, open_stored, read_mask
from maskrcnn.errors import InputError
from tests.data.tiff_files import (
    BITS,
    COLOR_MAP,
    EXTRA_SAMPLES,
    HEIGHT,
    ORIENTATION,
    PHOTOMETRIC,
    SAMPLES,
    WIDTH,
    packed,
    write_tiff,
)

RNG = np.random.default_rng(0)
H, W = 37, 53
BYTES = RNG.integers(0, 256, (H, W, 4), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(BYTES[:4, :5, :3]).resize((W, H), Image.Resampling.BICUBIC))
PERCENTILES = (2.0, 97.0)


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


def test_a_turned_tiff_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ImageJ, napari and tifffile show it as it is stored."""
    path = tmp_path / "turned.tif"
    write_tiff(path, BYTES[:, :, 0].tobytes(), {HEIGHT: H, WIDTH: W, BITS: 8, ORIENTATION: 6})
    assert_reads(path, BYTES[:, :, 0])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "turned.tif: its orientation tag (6) is not applied" in said[0]


def test_masks_go_through_the_same_reader(tmp_path: Path) -> None:
    ids = RNG.integers(0, 16, (H, W), dtype=np.uint8)
    palette = Image.fromarray(ids, "P")
    palette.putpalette(BYTES.reshape(-1)[: 3 * 16].tobytes())
    palette.save(tmp_path / "class1.png")
    tifffile.imwrite(tmp_path / "class1.tif", ids.astype(">f4"), tile=(16, 16), compression="lzw", byteorder=">")
    tifffile.imwrite(tmp_path / "class2.tif", ids, photometric="miniswhite")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_mask(path), ids)


def test_holes_are_no_data_everywhere(tmp_path: Path) -> None:
    """Tiles that a sparse file leaves out have the value that GDAL says."""
    path = tmp_path / "sparse.tif"
    tiles = [BYTES[:16, :16, 0], None, None, BYTES[16:32, 16:32, 0]]
    for nodata in (None, 9):
        tags = [] if nodata is None else [(42113, "s", 0, str(nodata), True)]
        tifffile.imwrite(
            path, iter(tiles), shape=(32, 32), dtype=np.uint8, tile=(16, 16), compression="zlib", extratags=tags
        )
        expected = np.full((32, 32), nodata or 0, np.uint8)
        expected[:16, :16], expected[16:, 16:] = BYTES[:16, :16, 0], BYTES[16:32, 16:32, 0]
        np.testing.assert_array_equal(tifffile.imread(path), expected)
        assert_reads(path, expected)


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
        with pytest.raises(InputError, match=rf"{path.name}: ") as error:
            read(path)
        assert "\n" not in str(error.value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e7


def test_a_stack_that_claims_more_pages_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, np.stack([BYTES[:, :, 0]] * 3), imagej=True, truncate=True, metadata={"axes": "TYX"})
    assert len(open_pictures(path)) == 3
    path.write_bytes(path.read_bytes().replace(b"images=3\nframes=3", b"images=9\nframes=9"))
    with pytest.raises(InputError, match="truncated, ImageJ counted 9 pages"):
        open_pictures(path)


def test_large_pictures_need_no_limit_changed_for_the_process(tmp_path: Path) -> None:
    code = "import maskrcnn.data.picture, PIL.Image; print(PIL.Image.MAX_IMAGE_PIXELS)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == 1024**3 // 4 // 3
    (tmp_path / "large.png").write_bytes(png_that_claims(13_000, 14_000))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    with warnings.catch_warnings(action="error"):
        assert image_size(tmp_path / "large.png") == (13_000, 14_000)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(BYTES[:, :, channel]) for channel in range(3)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="an animation, expected one picture"):
            open_pictures(tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_files_are_closed_with_their_pictures(tmp_path: Path) -> None:
    """Not when Python gets round to it: a folder may hold more of them than a process may have open."""
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


def test_a_preview_is_not_taken_for_the_photograph(tmp_path: Path) -> None:
    """As cameras write their raw files: the preview first, which points to the picture."""
    with tifffile.TiffWriter(tmp_path / "raw.dng") as tiff:
        tiff.write(BYTES[:10, :10, :3], photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        tiff.write(BYTES[:, :, 0], photometric="cfa", metadata=None)
    with pytest.raises(InputError, match=r"raw\.dng: colours stored as CFA"):
        open_pictures(tmp_path / "raw.dng")


@pytest.mark.parametrize("kind", ["separated", "cielab", "cfa"])
def test_colours_of_another_kind_are_refused(tmp_path: Path, kind: str) -> None:
    pixels = {"separated": BYTES, "cielab": BYTES[:, :, :3], "cfa": BYTES[:, :, 0]}[kind]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, metadata=None)
    for read in (read_image, open_pictures):
        with pytest.raises(InputError, match=f"colours stored as {kind.upper()}, expected grey or RGB"):
            read(tmp_path / "a.tif")
