"""Pictures read by region: strips and tiles of TIFFs, stacks, channels, pyramids, and exact percentiles."""

from __future__ import annotations

import tracemalloc
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

from maskrcnn.data.arrays import picture_of
from maskrcnn.data.intensities import percentiles_of
from maskrcnn.data.picture import open_pictures, read_image
from maskrcnn.errors import InputError
from tests.data.picture_files import assert_regions, only, write

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 200, (70, 90, 3), dtype=np.uint8)
GREY = RNG.integers(0, 40000, (70, 90), dtype=np.uint16)


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
    """As slide scanners write them: tables once per page, colours as YCbCr."""
    smooth = np.asarray(Image.fromarray(RGB[:8, :8]).resize((90, 70), Image.Resampling.BICUBIC))
    path = write(tmp_path / "j.tif", smooth, photometric="ycbcr", compression="jpeg", tile=(16, 16), subsampling=(1, 1))
    assert_regions(only(path, percentiles=None), torch.from_numpy(tifffile.imread(path)))


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


def test_a_region_only_reads_what_it_needs(tmp_path: Path) -> None:
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


def test_other_depths_span_the_whole_range(tmp_path: Path) -> None:
    ramp = np.linspace(300, 900, 600).reshape(20, 30)
    for dtype in (np.uint16, np.int32, np.float32, np.float64):
        image = read_image(write(tmp_path / f"{np.dtype(dtype)}.tif", ramp.astype(dtype)), (0, 100))
        assert image.dtype == torch.uint8
        assert (image.min(), image.max()) == (0, 255)
        assert (image[:, :, 0].float() - torch.linspace(0, 255, 600).reshape(20, 30)).abs().max() <= 1


def test_percentiles_are_numpys_and_keep_the_hue(tmp_path: Path) -> None:
    dark = (RGB // 8).astype(np.uint8)
    dark[0, 0] = 255  # a hot pixel
    image = read_image(write(tmp_path / "dark.tif", dark, photometric="rgb"), (1, 99)).numpy()
    low, high = np.percentile(dark, (1, 99), method="inverted_cdf")
    expected = np.clip(np.rint((dark.astype(float) - low) * 255 / (high - low)), 0, 255)
    assert np.abs(image - expected).max() <= 1


def test_a_picture_of_one_value_is_black(tmp_path: Path) -> None:
    assert not read_image(write(tmp_path / "flat.tif", np.full((9, 9), 77, np.uint8))).any()
