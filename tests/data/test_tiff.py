"""What a TIFF holds: stacks, scenes, channels, levels, pyramids, holes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from maskrcnn.data.picture import open_pictures, read_image
from maskrcnn.errors import InputError
from tests.data.picture_files import (
    BITS,
    BYTES,
    HEIGHT,
    OME,
    ORIENTATION,
    WIDTH,
    H,
    W,
    assert_reads,
    assert_regions,
    only,
    write,
    write_tiff,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 200, (70, 90, 3), dtype=np.uint8)


def test_each_page_of_a_stack_is_a_picture_of_its_own(tmp_path: Path) -> None:
    stack = RNG.integers(0, 255, (6, 70, 90), dtype=np.uint8)
    stack[2] //= 5  # a darker page is stretched by its own percentiles
    pictures = open_pictures(write(tmp_path / "z.tif", stack, metadata={"axes": "ZYX"}))
    assert [p.name for p in pictures] == [f"z.tif#z{i}" for i in range(6)]
    for picture, page in zip(pictures, stack, strict=True):
        alone = write(tmp_path / "page.tif", page)
        assert_regions(picture, read_image(alone))


def test_pages_of_another_type_or_compression_belong_to_the_stack(tmp_path: Path) -> None:
    pages = [
        RNG.integers(0, 255, (70, 90), dtype=np.uint8),
        RNG.integers(0, 60000, (70, 90), dtype=np.uint16),
        RNG.integers(0, 255, (70, 90, 3), dtype=np.uint8),
        RNG.integers(0, 255, (70, 90), dtype=np.uint8),
    ]
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as tiff:
        for page, compression in zip(pages, ("zlib", None, "lzw", "zlib"), strict=True):
            tiff.write(page, compression=compression, photometric="rgb" if page.ndim == 3 else "minisblack")
        tiff.write(pages[0][::2, ::2], subfiletype=1)  # a thumbnail
    pictures = open_pictures(tmp_path / "mixed.tif")
    assert [picture.name for picture in pictures] == [f"mixed.tif#{number}" for number in (1, 2, 3, 4)]
    for picture, page in zip(pictures, pages, strict=True):
        assert np.array_equal(picture.raw(0, 0, 70, 90), page)


def test_pages_of_different_sizes_are_pictures(tmp_path: Path) -> None:
    pages = [RNG.integers(0, 255, size, dtype=np.uint8) for size in ((70, 90), (40, 90), (200, 30), (70, 90))]
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as tiff:
        for page in pages:
            tiff.write(page, metadata=None)
    pictures = open_pictures(tmp_path / "sizes.tif")
    assert [picture.name for picture in pictures] == [f"sizes.tif#{number}" for number in (1, 2, 3, 4)]
    for picture, page in zip(pictures, pages, strict=True):
        assert np.array_equal(picture.raw(0, 0, *page.shape), page)
    with pytest.raises(InputError, match=r"4 pictures \(pages or scenes\), expected one"):
        read_image(tmp_path / "sizes.tif")


def test_scenes_are_pictures_but_for_what_lies_beside_a_slide(tmp_path: Path) -> None:
    scenes = {"A1": (2, 70, 90), "label image": (30, 20), "A2": (80, 60), "Macro": (40, 50), "map": (9, 9)}
    arrays = {name: RNG.integers(0, 255, shape, dtype=np.uint8) for name, shape in scenes.items()}
    path = tmp_path / "plate.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        for name, array in arrays.items():
            tiff.write(array, metadata={"axes": "TYX"[3 - array.ndim :], "Name": name}, photometric="minisblack")
    pictures = open_pictures(path)
    assert [p.name for p in pictures] == [f"plate.ome.tif#{place}" for place in ("s0_t0", "s0_t1", "s1")]
    for picture, page in zip(pictures, (*arrays["A1"], arrays["A2"]), strict=True):
        assert np.array_equal(picture.raw(0, 0, *page.shape), page)
    with pytest.raises(InputError, match="3 pictures"):
        read_image(path)


def test_pages_are_read_by_several_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.data.stored.BLOCK_CACHE", 1 << 14)
    stack = RNG.integers(0, 255, (8, 256, 256), dtype=np.uint8)
    path = write(tmp_path / "z.tif", stack, metadata={"axes": "ZYX"}, tile=(32, 32), compression="zlib")
    pictures = open_pictures(path, None)

    def same(turn: int) -> bool:
        page = turn % len(stack)
        return np.array_equal(pictures[page].raw(16, 16, 200, 200), stack[page, 16:216, 16:216])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, range(200)))


@pytest.mark.parametrize("imagej", [True, False])
def test_a_stack_with_one_header_has_all_of_its_pages(tmp_path: Path, imagej: bool) -> None:
    """ImageJ writes those above 4 GiB so."""
    stack = RNG.integers(0, 40000, (2, 3, 70, 90), dtype=np.uint16)
    path = write(tmp_path / "s.tif", stack, imagej=imagej, truncate=True, metadata={"axes": "ZCYX"})
    pictures = open_pictures(path)
    assert len(pictures) == 2
    for picture, page in zip(pictures, stack, strict=True):
        assert np.array_equal(picture.raw(13, 5, 40, 50), np.moveaxis(page, 0, 2)[13:53, 5:55])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_of_an_ome_set_are_read_from_their_own_files(tmp_path: Path, compression: str | None) -> None:
    stack = RNG.integers(0, 40000, (2, 70, 90), dtype=np.uint16)
    paths = [tmp_path / f"{number}.ome.tif" for number in range(2)]
    for number, path in enumerate(paths):
        write(path, stack[number], description=OME.format(number), metadata=None, compression=compression)
    for path in paths:
        assert np.array_equal([picture.raw(0, 0, 70, 90) for picture in open_pictures(path)], stack)
    paths[1].unlink()
    with pytest.raises(InputError, match="another file of this OME-TIFF, which is missing"):
        open_pictures(paths[0])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ("CYX", {"ome": True}),
        ("CYX", {"imagej": True}),
        ("CYX", {}),
        ("", {}),
        ("YXS", {"planarconfig": "contig"}),
        ("SYX", {"planarconfig": "separate"}),
        ("YXQ", {"dtype": "f4"}),
    ],
    ids=str,
)
def test_two_and_four_channels_are_not_grey_or_rgb_with_alpha(
    tmp_path: Path, axes: str, options: dict, count: int
) -> None:
    """Where the file does not say that one is alpha: fluorescence has as many."""
    options = dict(options)
    planes = RNG.integers(0, 200, (count, 70, 90)).astype(options.pop("dtype", "u1"))
    metadata = {"metadata": {"axes": axes}} if axes in ("CYX", "YXS", "SYX") and "imagej" not in options else {}
    stored = np.moveaxis(planes, 0, 2) if axes.startswith("YX") else planes
    path = write(tmp_path / "c.tif", stored, photometric="minisblack", **options, **metadata)
    for read in (open_pictures, read_image):
        with pytest.raises(InputError, match=rf"c\.tif: {count} channels; choose one to three of them with --channels"):
            read(path)
    for chosen in ([1], [1, 0], [0, 1], [count - 1, 0, 1]):
        expected = np.zeros((70, 90, 3), np.uint8)
        expected[:, :, : len(chosen)] = np.moveaxis(planes[chosen], 0, 2)
        if len(chosen) == 1:
            expected[:] = planes[chosen[0]][:, :, None]
        percentiles = None if planes.dtype == np.uint8 else (0, 100)
        picture = only(path, percentiles=percentiles, channels=chosen)
        np.testing.assert_array_equal(picture.raw(0, 0, 70, 90), expected if len(chosen) > 1 else expected[:, :, 0])
        assert_regions(picture, read_image(path, percentiles, chosen))


@pytest.mark.parametrize("ome", [True, False])
def test_channels_are_chosen(tmp_path: Path, ome: bool) -> None:
    planes = RNG.integers(0, 60000, (2, 5, 70, 90), dtype=np.uint16)
    path = tmp_path / ("c.ome.tif" if ome else "c.tif")
    write(path, planes, metadata={"axes": "TCYX"}, ome=ome, imagej=not ome, photometric="minisblack")
    with pytest.raises(InputError, match="5 channels; choose one to three"):
        open_pictures(path)
    with pytest.raises(InputError, match="has the channels 0 to 4, no 5"):
        open_pictures(path, channels=[5])
    for chosen in ([3], [4, 0, 2], [1, 2]):
        pictures = open_pictures(path, channels=chosen, percentiles=None)
        assert len(pictures) == 2
        for picture, frame in zip(pictures, planes, strict=True):
            expected = np.rint(frame[chosen].astype(np.float32) * np.float32(255 / 65535)).astype(np.uint8)
            colours = np.zeros((70, 90, 3), np.uint8)
            colours[:, :, : len(chosen)] = np.moveaxis(expected, 0, 2)
            if len(chosen) == 1:
                colours[:] = expected[0][:, :, None]
            assert_regions(picture, torch.from_numpy(colours))


def test_a_level_of_a_pyramid(tmp_path: Path) -> None:
    small = np.ascontiguousarray(RGB[::2, ::2])
    for name, options in (("svs.tif", {}), ("p.ome.tif", {"metadata": {"axes": "YXS"}})):
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            tiff.write(RGB, tile=(16, 16), subifds=1, photometric="rgb", **options)
            tiff.write(small, tile=(16, 16), subfiletype=1, photometric="rgb")
        assert torch.equal(only(tmp_path / name, percentiles=None).read(0, 0, 70, 90), torch.from_numpy(RGB))
        level = only(tmp_path / name, percentiles=None, level=1)
        assert torch.equal(level.read(0, 0, 35, 45), torch.from_numpy(small))
        with pytest.raises(InputError, match="has the levels 0 to 1"):
            open_pictures(tmp_path / name, level=2)


def test_scenes_without_a_level_are_left_out(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.ome.tif") as tiff:
        tiff.write(RGB[:30, :40], photometric="rgb")
        tiff.write(RGB, subifds=1, photometric="rgb")
        tiff.write(np.ascontiguousarray(RGB[::2, ::2]), subfiletype=1, photometric="rgb")
    assert [picture.size for picture in open_pictures(tmp_path / "two.ome.tif")] == [(30, 40), (70, 90)]
    assert [picture.size for picture in open_pictures(tmp_path / "two.ome.tif", level=1)] == [(35, 45)]


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pixels of type complex64, expected integers or floats"):
        open_pictures(write(tmp_path / "c.tif", np.ones((20, 30), np.complex64)))


def test_the_orientation_of_a_tiff_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ImageJ, napari and tifffile show it as it is stored."""
    path = tmp_path / "turned.tif"
    write_tiff(path, BYTES[:, :, 0].tobytes(), {HEIGHT: H, WIDTH: W, BITS: 8, ORIENTATION: 6})
    assert_reads(path, BYTES[:, :, 0])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "turned.tif: its orientation tag (6) is not applied" in said[0]


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


def test_a_stack_that_claims_more_pages_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, np.stack([BYTES[:, :, 0]] * 3), imagej=True, truncate=True, metadata={"axes": "TYX"})
    assert len(open_pictures(path)) == 3
    path.write_bytes(path.read_bytes().replace(b"images=3\nframes=3", b"images=9\nframes=9"))
    with pytest.raises(InputError, match="truncated, expected 9 pages by its ImageJ header"):
        open_pictures(path)


def test_an_ome_header_that_counts_pages_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "0.ome.tif"
    for size, message in (("3", "which is missing"), ("99999999", "99999999 pages by its OME header")):
        description = OME.format(0).replace('SizeT="2"', f'SizeT="{size}"')
        write(path, np.zeros((70, 90), np.uint16), description=description, metadata=None)
        with pytest.raises(InputError, match=message):
            open_pictures(path)


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
