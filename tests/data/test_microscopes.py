"""CZI, ND2, LIF and slides that are no TIFFs: pictures by region, with places, channels, levels and pixel sizes.

Files are written by pylibCZIrw, or byte by byte where no library writes the format, and opened by the libraries of
their formats. Real files are read where the folder that MASKRCNN_REAL_FILES names has some.
"""

from __future__ import annotations

import builtins
import os
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn.data import slide
from maskrcnn.data.picture import open_pictures, read_image
from maskrcnn.data.reader import open_stored
from maskrcnn.data.stored import StoredPicture
from maskrcnn.errors import InputError
from tests.data.byte_files import write_lif, write_nd2
from tests.data.microscope_files import halved, write_czi, write_ome_zarr, write_svs

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 40000, (2, 3, 2, 70, 90), dtype=np.uint16)  # t, z, c, y, x
GREY = STACK[:1, :1, :1]
NAMES = [f"t{t}_z{z}" for t in range(2) for z in range(3)]


def czi(path: Path, stack: np.ndarray, packed: bool = False) -> Path:
    pytest.importorskip("pylibCZIrw")
    return write_czi(path, {0: (5, 7, stack)}, 0.5)


def lif(path: Path, stack: np.ndarray, packed: bool = False) -> Path:
    pytest.importorskip("liffile")
    return write_lif(path, [stack], 0.5)


def nd2(path: Path, stack: np.ndarray, packed: bool = False) -> Path:
    """A time series at several positions, which take the place of the depths."""
    pytest.importorskip("nd2")
    frames = np.moveaxis(stack.reshape(-1, *stack.shape[2:]), 1, 3)
    return write_nd2(path, np.ascontiguousarray(frames), stack.shape[1], 0.5, packed)


WRITERS: dict[str, Callable[..., Path]] = {"czi": czi, "lif": lif, "nd2": nd2}


def places(kind: str) -> list[str]:
    return [f"p{z}_t{t}" for t in range(2) for z in range(3)] if kind == "nd2" else NAMES


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_each_time_and_depth_is_a_picture(tmp_path: Path, kind: str, packed: bool) -> None:
    path = WRITERS[kind](tmp_path / f"series.{kind}", STACK, packed)
    pictures = open_stored(path, colours=False)
    assert [picture.name for picture in pictures] == [f"series.{kind}#{place}" for place in places(kind)]
    for picture, planes in zip(pictures, STACK.reshape(-1, 2, 70, 90), strict=True):
        assert picture.size == (70, 90)
        assert np.array_equal(picture.whole(), np.moveaxis(planes, 0, 2))
        assert np.array_equal(picture.read(13, 5, 40, 50), np.moveaxis(planes, 0, 2)[13:53, 5:55])
        assert picture.pixel_size is not None
        assert picture.pixel_size.micrometres() == pytest.approx(0.5)
    with pytest.raises(InputError, match=rf"series\.{kind}: 2 channels; choose one to three of them with --channels"):
        open_pictures(path)
    chosen = open_pictures(path, None, channels=[1])[4]
    assert np.array_equal(chosen.raw(13, 5, 40, 50), STACK.reshape(-1, 2, 70, 90)[4, 1, 13:53, 5:55])
    named = open_stored(f"{path}#{places(kind)[4]}", channels=[1])
    assert [picture.name for picture in named] == [f"series.{kind}#{places(kind)[4]}"]
    with pytest.raises(InputError, match=r"no picture t9"):
        open_stored(f"{path}#t9", channels=[1])


@pytest.mark.parametrize("kind", WRITERS)
def test_a_single_picture_is_called_by_its_file(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / f"one.{kind}", GREY)
    (picture,) = open_pictures(path, None)
    assert picture.name == f"one.{kind}"
    assert np.array_equal(picture.raw(0, 0, 70, 90), GREY[0, 0, 0])
    assert read_image(path).shape == (70, 90, 3)


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files_are_named(tmp_path: Path, kind: str) -> None:
    whole = WRITERS[kind](tmp_path / f"whole.{kind}", GREY).read_bytes()
    path = tmp_path / f"cut.{kind}"
    for keep in (20, 200, len(whole) // 2):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError) as error:
            read_image(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_scenes_of_a_czi_lie_where_they_are_and_rgb_is_rgb(tmp_path: Path) -> None:
    pytest.importorskip("pylibCZIrw")
    rgb = RNG.integers(0, 255, (1, 1, 1, 40, 60, 3), dtype=np.uint8)
    path = write_czi(tmp_path / "two.czi", {0: (0, 0, rgb), 1: (500, 300, rgb[:, :, :, ::-1])})
    first, second = open_stored(path)
    assert [first.name, second.name] == ["two.czi#s0", "two.czi#s1"]
    assert np.array_equal(first.whole(), rgb[0, 0, 0])
    assert np.array_equal(second.read(3, 4, 20, 30), rgb[0, 0, 0, ::-1][3:23, 4:34])
    assert first.channels == ("dye0",)
    assert first.levels == ()  # libCZI would drop pixels


@pytest.mark.parametrize(("count", "places"), [(1, ["t0", "t1"]), (2, ["s0_t0", "s0_t1", "s1_t0", "s1_t1"])])
def test_images_of_a_lif_are_scenes(tmp_path: Path, count: int, places: Sequence[str]) -> None:
    pytest.importorskip("liffile")
    images = [STACK[:, :1, :1, : 70 - 10 * number] for number in range(count)]
    pictures = open_stored(write_lif(tmp_path / "a.lif", [np.ascontiguousarray(image) for image in images]))
    assert [picture.place for picture in pictures] == places
    assert np.array_equal(pictures[-1].whole(), images[-1][1, 0, 0])


def test_an_nd2_of_a_microscope_without_calibration_has_no_pixel_size(tmp_path: Path) -> None:
    (picture,) = open_stored(write_nd2(nd2(tmp_path / "a.nd2", GREY), np.moveaxis(GREY[0], 1, 3), pixel_size=0.0))
    assert picture.pixel_size is None or picture.pixel_size.micrometres() is None


def test_a_slide_that_openslide_reads_is_as_tifffile_reads_it(tmp_path: Path) -> None:
    """One reader for each: OpenSlide cannot write MRXS, so that a TIFF stands in for it."""
    pytest.importorskip("openslide")
    pixels = np.kron(RNG.integers(0, 255, (40, 50, 3), dtype=np.uint8), np.ones((25, 25, 1), np.uint8))[:992, :1232]
    path = write_svs(tmp_path / "a.svs", pixels, (4, 16))
    (expected,), (found,) = open_stored(path), slide.open_slide(path, None)
    assert found.size == expected.size == (992, 1232)
    assert [level.size for level in found.levels] == [level.size for level in expected.levels] == [(248, 308), (62, 77)]
    assert np.array_equal(found.read(300, 411, 400, 200), pixels[300:700, 411:611])
    for mine, theirs in zip(expected.levels, found.levels, strict=True):
        assert np.array_equal(mine.read(12, 20, 40, 50), theirs.read(12, 20, 40, 50))
    for picture in (found, expected):
        assert picture.pixel_size is not None
        assert picture.pixel_size.micrometres() == 0.25
    assert np.array_equal(slide.open_slide(path, [2])[0].read(5, 6, 7, 8), pixels[5:12, 6:14, 2])


def test_what_a_scanner_left_out_is_white() -> None:
    region = np.array([[[200, 100, 0, 255], [10, 20, 30, 0]]], np.uint8)
    assert slide._on_white(region).tolist() == [[[200, 100, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("name", "content", "module", "extra"),
    [
        ("a.czi", b"ZISRAWFILE".ljust(64, b"\0"), "pylibCZIrw.czi", "czi"),
        ("a.nd2", b"\xda\xce\xbe\x0a".ljust(64, b"\0"), "nd2", "nd2"),
        ("a.lif", b"\x70\0\0\0".ljust(64, b"\0"), "liffile", "lif"),
        ("a.mrxs", b"\xff\xd8\xff".ljust(64, b"\0"), "openslide", "slides"),
        ("a.zarr", b"", "zarr", "zarr"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, module: str, extra: str
) -> None:
    path = tmp_path / name
    if name == "a.zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    else:
        path.write_bytes(content)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as error:
        open_pictures(path)
    assert str(error.value).startswith(
        f"{path}: its format is read with {module.split('.')[0]}, which is not installed"
    )
    assert str(error.value).endswith(f"pip install 'maskrcnn[{extra}]'")


def test_readers_load_their_libraries_when_a_file_needs_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An ordinary picture is read without any of them."""
    loaded: list[str] = []
    original = builtins.__import__

    def counted(name: str, *rest: Any) -> Any:
        loaded.append(name.split(".")[0])
        return original(name, *rest)

    path = write_svs(tmp_path / "a.svs", np.zeros((64, 64, 3), np.uint8), ())
    monkeypatch.setattr(builtins, "__import__", counted)
    assert len(open_pictures(path)) == 1
    assert not {"zarr", "openslide", "nd2", "pylibCZIrw", "liffile"} & set(loaded)


def huge_zarr(folder: Path) -> Path:
    zarr = pytest.importorskip("zarr")
    path = write_ome_zarr(folder / "huge.zarr", np.zeros((8, 8), np.uint8), "yx", levels=1)
    array = zarr.open_group(path, mode="r+").create_array(
        "0", shape=(100_000, 100_000), chunks=(1024, 1024), dtype="u1", fill_value=0, overwrite=True
    )
    array[70_000:70_010, 80_000:80_010] = 9
    return path


def huge_tiff(folder: Path) -> Path:
    import tifffile

    path = folder / "huge.tif"
    tile = np.zeros((1024, 1024), np.uint8)
    tile[70_000 % 1024 :][:10, 80_000 % 1024 :][:, :10] = 9
    where = (70_000 // 1024) * 98 + 80_000 // 1024
    tiles = (tile if index == where else (np.zeros_like(tile) if index == 0 else None) for index in range(98 * 98))
    tifffile.imwrite(path, tiles, shape=(100_000, 100_000), dtype="u1", tile=(1024, 1024), compression="zlib")
    return path


@pytest.mark.parametrize("write", [huge_zarr, huge_tiff])
def test_a_region_of_ten_thousand_megapixels_is_read_alone(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    tracemalloc.start()
    (picture,) = open_pictures(path)
    region = picture.raw(69_500, 79_500, 1024, 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.size == (100_000, 100_000)
    assert region.sum() == 900
    assert region[500:510, 500:510].min() == 9
    assert peak < 3e7


def check_real(path: Path) -> list[StoredPicture]:
    """Open a file, and compare a region with the whole."""
    pictures = open_stored(path, colours=False)
    for picture in (pictures[0], pictures[-1]):
        whole = picture.whole()
        height, width = picture.size
        assert whole.shape[:2] == (height, width)
        assert whole.max() > whole.min()
        top, left = height // 3, width // 4
        assert np.array_equal(
            picture.read(top, left, height // 2, width // 2), whole[top:, left:][: height // 2, : width // 2]
        )
        for level in picture.levels:
            assert level.read(0, 0, *level.size).shape[:2] == level.size
    return pictures


REAL = Path(os.environ.get("MASKRCNN_REAL_FILES", "real-files"))


@pytest.mark.skipif(not REAL.is_dir(), reason="MASKRCNN_REAL_FILES names no folder with files of microscopes")
def test_real_files() -> None:
    """CZI of sebi06/czitools, LIF of Arcadia-Science/readlif, slides of openslide/openslide-python."""
    known = {
        "WellD6-7_S2.czi": ["D06_f0", "D07_f0"],
        "S3_1Pos_2Mosaic_T1_Z1_CH1.czi": ["s0", "s1", "s2"],
        "nuc_small.czi": [""],
        "boxes.tiff": [""],
    }
    found = [path for path in sorted(REAL.rglob("*")) if path.suffix in (".czi", ".lif", ".nd2", ".svs", ".tiff")]
    assert found
    read = 0
    for path in found:
        try:
            pictures = check_real(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            continue
        read += 1
        if path.name in known:
            assert [picture.place for picture in pictures] == known[path.name]
    assert read > len(found) // 2


def test_levels_are_means_where_a_czi_has_them() -> None:
    """The pyramid of a real file: each pixel lies where its block of the full size does."""
    path = REAL / "czi" / "1_tileregion.czi"
    if not path.is_file():
        pytest.skip("1_tileregion.czi of sebi06/czitools is not there")
    (picture,) = open_stored(path)
    (level,) = picture.levels
    expected = halved(picture.whole()).astype(float)[8:-8, 8:-8]
    found = level.read(0, 0, *level.size).astype(float)
    errors = {
        (y, x): np.abs(np.roll(found, (y, x), (0, 1))[8:-8, 8:-8] - expected).mean()
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    }
    assert min(errors, key=errors.__getitem__) == (0, 0)
