"""Pictures read by region: every way a TIFF can be cut up, stacks, channels, pyramids, and exact percentiles."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from PIL import Image

from maskrcnn.data.intensities import percentiles_of
from maskrcnn.data.picture import Picture, open_pictures, picture_of, read_image
from maskrcnn.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 200, (70, 90, 3), dtype=np.uint8)
GREY = RNG.integers(0, 40000, (70, 90), dtype=np.uint16)
REGIONS = [(0, 0, 70, 90), (0, 0, 1, 1), (69, 89, 1, 1), (13, 5, 40, 50), (32, 48, 38, 42)]


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


@pytest.mark.parametrize("percentiles", [None, (0.1, 99.9), (5.0, 60.0)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"tile": (16, 32)},
        {"tile": (32, 16), "compression": "zlib", "predictor": True},
        {"tile": (16, 16), "bigtiff": True, "compression": "zlib"},
        {"byteorder": ">", "rowsperstrip": 9},
        {"byteorder": ">"},
    ],
    ids=str,
)
def test_regions_are_those_of_the_whole_picture(tmp_path: Path, options: dict, percentiles: tuple | None) -> None:
    for name, array, kind in (("rgb", RGB, "rgb"), ("grey", GREY, "minisblack")):
        path = write(tmp_path / f"{name}.tif", array, photometric=kind, **options)
        assert_regions(only(path, percentiles=percentiles), read_image(path, percentiles))


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}, {"rowsperstrip": 5}])
def test_planes_alpha_and_inverted_greys(tmp_path: Path, options: dict) -> None:
    planar = write(tmp_path / "p.tif", np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate", **options)
    rgba = np.concatenate([RGB, np.full_like(RGB[:, :, :1], 255)], axis=2)
    alpha = write(tmp_path / "a.tif", rgba, photometric="rgb", **options)
    inverted = write(tmp_path / "i.tif", RGB[:, :, 0], photometric="miniswhite", **options)
    real = write(tmp_path / "f.tif", RGB[:, :, 0].astype(np.float32) / 7 - 3, photometric="miniswhite", **options)
    for path in (planar, alpha, inverted, real):
        assert_regions(only(path), read_image(path))


def test_hw3_pictures(shared_data: Path) -> None:
    paths = [*shared_data.glob("hw3_sample/train/*/image.tif"), *sorted(shared_data.glob("dsb2018/train/*/image.tif"))]
    for path in paths[::40]:
        picture, whole = only(path), read_image(path)
        assert picture.size == tuple(whole.shape[:2])
        assert torch.equal(picture.read(0, 0, *picture.size), whole)
        assert torch.equal(picture.read(3, 2, 20, 17), whole[3:23, 2:19])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_png_and_jpeg(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RGB).save(tmp_path / f"p.{suffix}")
    assert_regions(only(tmp_path / f"p.{suffix}"), read_image(tmp_path / f"p.{suffix}"))


def test_jpeg_tiles(tmp_path: Path) -> None:
    """As slide scanners write them: the tables once a page, colours as YCbCr."""
    smooth = np.asarray(Image.fromarray(RGB[:8, :8]).resize((90, 70), Image.Resampling.BICUBIC))
    path = write(tmp_path / "j.tif", smooth, photometric="ycbcr", compression="jpeg", tile=(16, 16), subsampling=(1, 1))
    assert_regions(only(path, percentiles=None), torch.from_numpy(tifffile.imread(path)))


def test_each_page_of_a_stack_is_a_picture_of_its_own(tmp_path: Path) -> None:
    stack = RNG.integers(0, 255, (6, 70, 90), dtype=np.uint8)
    stack[2] //= 5  # a darker page is stretched by its own percentiles
    pictures = open_pictures(write(tmp_path / "z.tif", stack, metadata={"axes": "ZYX"}))
    assert [p.name for p in pictures] == [f"z.tif#{i}" for i in range(1, 7)]
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
    assert [p.name for p in pictures] == [f"plate.ome.tif#{n} (scene {s})" for n, s in ((1, 1), (2, 1), (3, 2))]
    for picture, page in zip(pictures, (*arrays["A1"], arrays["A2"]), strict=True):
        assert np.array_equal(picture.raw(0, 0, *page.shape), page)
    with pytest.raises(InputError, match="3 pictures"):
        read_image(path)


def test_pages_are_read_by_several_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.data.tiff_segments.SEGMENT_CACHE", 1 << 14)
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


OME = """<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"
 UUID="urn:uuid:{0}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="90"
 SizeY="70" SizeC="1" SizeZ="1" SizeT="2"><TiffData IFD="0" FirstT="0" PlaneCount="1"><UUID FileName="0.ome.tif">
urn:uuid:0</UUID></TiffData><TiffData IFD="0" FirstT="1" PlaneCount="1"><UUID FileName="1.ome.tif">
urn:uuid:1</UUID></TiffData></Pixels></Image></OME>"""


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_of_an_ome_set_are_read_from_their_own_files(tmp_path: Path, compression: str | None) -> None:
    stack = RNG.integers(0, 40000, (2, 70, 90), dtype=np.uint16)
    paths = [tmp_path / f"{number}.ome.tif" for number in range(2)]
    for number, path in enumerate(paths):
        write(path, stack[number], description=OME.format(number), metadata=None, compression=compression)
    for path in paths:
        assert np.array_equal([picture.raw(0, 0, 70, 90) for picture in open_pictures(path)], stack)
    paths[1].unlink()
    with pytest.raises(InputError, match="another file of its OME set, which is missing"):
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
def test_two_and_four_channels_are_no_grey_or_rgb_with_alpha(
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


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tif", RGB, photometric="rgb", compression="zlib", rowsperstrip=8)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"t\.tif"):
        open_pictures(path)[0].read(0, 0, 70, 90)
    holed = write(tmp_path / "nan.tif", np.where(GREY[3, 4] == GREY, np.nan, GREY.astype(np.float32)))
    with pytest.raises(InputError, match="NaN"):
        only(holed).read(0, 0, 70, 90)
    with pytest.raises(InputError, match="no such file"):
        open_pictures(tmp_path / "nowhere.tif")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png"):
        open_pictures(tmp_path / "text.png")
    with pytest.raises(ValueError, match="region"):
        only(write(tmp_path / "g.tif", GREY)).read(60, 0, 20, 20)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pixels of type complex64, expected integers or floats"):
        open_pictures(write(tmp_path / "c.tif", np.ones((20, 30), np.complex64)))


def test_a_region_costs_what_it_shows(tmp_path: Path) -> None:
    """A picture of 50 MB: a region of it takes its own tiles, and the percentiles a band at a time."""
    path = tmp_path / "large.tif"
    tiles = (np.full((512, 512), i % 251, np.uint8) for i in range(14 * 14))
    tifffile.imwrite(path, tiles, shape=(7168, 7168), dtype=np.uint8, tile=(512, 512), compression="zlib")
    for percentiles, most in ((None, 3e6), ((0.1, 99.9), 1.2e8)):
        picture = only(path, percentiles=percentiles)
        tracemalloc.start()
        region = picture.read(3400, 3400, 300, 300)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most
        assert len(region.unique()) == 4


def test_a_reduced_picture_is_the_mean_of_its_blocks(tmp_path: Path) -> None:
    picture = only(write(tmp_path / "r.tif", RGB, photometric="rgb"), percentiles=None)
    reduced = picture.reduced(30)
    assert reduced.shape == (24, 30, 3)  # the last row holds the mean of the one row that is left
    blocks = RGB[:69].reshape(23, 3, 30, 3, 3).mean(axis=(1, 3))
    assert np.abs(reduced[:23] - blocks).max() <= 0.6  # Pillow's own rounding
    assert np.array_equal(picture.reduced(90), RGB)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"]).flatmap(
        lambda kind: stn.arrays(
            kind,
            st.integers(1, 60),
            elements=None if "f" not in kind else {"allow_nan": False, "allow_infinity": False},
        )
    ),
    st.tuples(st.floats(0, 50), st.floats(50, 100)),
)
def test_percentiles_by_digits_are_numpys(values: np.ndarray, percentiles: tuple[float, float]) -> None:
    half = len(values) // 2
    found = percentiles_of(lambda: iter([part for part in (values[:half], values[half:]) if len(part)]), percentiles)
    low, high = np.percentile(values, (0, 100))
    expected = np.percentile(values.astype(np.float64), percentiles, method="inverted_cdf")
    assert low <= found[0] <= found[1] <= high
    assert np.array_equal(found, expected)


def test_arrays_are_pictures_too() -> None:
    assert_regions(picture_of(RGB, None), torch.from_numpy(RGB))
    assert picture_of(GREY, (1, 99)).read(0, 0, 70, 90).shape == (70, 90, 3)
    for bad in (np.zeros((3, 4, 5)), np.zeros((3, 4, 2)), np.zeros((0, 4)), np.full((2, 2), np.inf), np.array([["a"]])):
        with pytest.raises(InputError, match="image"):
            picture_of(bad, None)
    assert np.array_equal(
        picture_of(np.zeros((3, 4, 5)) + np.arange(5), None, channels=[4, 1]).raw(0, 0, 1, 1), [[[4, 1, 0]]]
    )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_arrays_of_either_byte_order_look_the_same(dtype: str) -> None:
    for array in (GREY // 2, np.stack([GREY // 2, GREY // 3, GREY // 4], axis=2)):
        for percentiles in (None, (1, 99)):
            little, big = (picture_of(array.astype(order + dtype), percentiles) for order in "<>")
            assert torch.equal(little.read(0, 0, 70, 90), big.read(0, 0, 70, 90))
            assert torch.equal(little.rescaled(0.5).read(0, 0, 35, 45), big.rescaled(0.5).read(0, 0, 35, 45))


def test_tensors_and_wide_floats_are_pictures_too() -> None:
    array = (RGB // 4).astype(np.float32)
    expected = picture_of(array, (1, 99)).read(0, 0, 70, 90)
    tensor = torch.from_numpy(array)
    kinds = [
        tensor,
        tensor.clone().requires_grad_(),
        tensor.bfloat16(),
        tensor.half(),
        tensor.double().permute(0, 1, 2),
    ]
    for picture in (*kinds, array.astype(np.longdouble), array.astype(np.float16)):
        assert torch.equal(picture_of(picture, (1, 99)).read(0, 0, 70, 90), expected)
    assert picture_of(tensor.to(torch.float8_e5m2), None).read(0, 0, 70, 90).shape == (70, 90, 3)
    for bad in (tensor.to_sparse(), torch.empty(70, 90, device="meta"), [[1], [2, 3]]):
        with pytest.raises(InputError, match="that NumPy cannot hold"):
            picture_of(bad, None)
    with pytest.raises(InputError, match="complex64"):
        picture_of(tensor.to(torch.complex64), None)


@pytest.mark.parametrize("factor", [0.25, 0.37, 0.8, 1.3, 2.6, 4.0])
def test_a_rescaled_picture_is_the_whole_one_resampled(factor: float) -> None:
    """As training crops are, and wherever the region is cut: to one grey value, for both round."""
    array = np.random.default_rng(0).integers(0, 255, (211, 303, 3), dtype=np.uint8)
    picture = picture_of(array, None)
    scaled = picture.rescaled(factor)
    assert scaled.size == (round(211 * factor), round(303 * factor))
    whole = scaled.read(0, 0, *scaled.size).int()
    pixels = torch.from_numpy(array).permute(2, 0, 1)[None].float()
    expected = F.interpolate(pixels, scaled.size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    assert float((whole - expected).abs().max()) <= 1.5
    height, width = scaled.size
    for top, left, h, w in ((0, 0, 9, 11), (height - 9, width - 11, 9, 11), (height // 3, width // 4, 31, 17)):
        part = scaled.read(top, left, h, w).int()
        assert int((part - whole[top : top + h, left : left + w]).abs().max()) <= 1


def test_a_picture_rescaled_by_nothing_is_itself() -> None:
    picture = picture_of(np.zeros((40, 50), np.uint8), None)
    assert picture.rescaled(1.0) is picture
    assert picture.rescaled(1.004) is picture
    assert picture.rescaled(0.001).size == (1, 1)
    assert picture.rescaled(0.001).read(0, 0, 1, 1).shape == (1, 1, 3)
