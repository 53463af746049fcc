"""Readers of pictures and masks, on files of every kind that microscopes write, and on broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from maskrcnn.data.picture import read_image
from maskrcnn.data.reader import MAX_ID, image_size, read_mask
from maskrcnn.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, array, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "lzw", "predictor": True},
        {"compression": "deflate", "predictor": True},
        {"tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"rowsperstrip": 7},
    ],
)
def test_colour_comes_back_as_written(tmp_path: Path, options: dict) -> None:
    path = write(tmp_path / "image.tif", RGB, photometric="rgb", **options)
    assert torch.equal(read_image(path, percentiles=None), torch.from_numpy(RGB))
    assert image_size(path) == (20, 30)


def test_planes_one_after_another(tmp_path: Path) -> None:
    path = write(tmp_path / "image.tif", np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate")
    assert torch.equal(read_image(path, None), torch.from_numpy(RGB))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.concatenate([RGB, GREY[:, :, None]], axis=2)
    for extra in ("unassalpha", "assocalpha", "unspecified"):
        path = write(tmp_path / f"{extra}.tif", rgba, photometric="rgb", extrasamples=[extra], compression="lzw")
        assert torch.equal(read_image(path, None), torch.from_numpy(RGB))


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(write(tmp_path / "grey.tif", GREY), None)
    assert image.shape == (20, 30, 3)
    assert all(torch.equal(image[:, :, c], torch.from_numpy(GREY)) for c in range(3))
    inverted = read_image(write(tmp_path / "inverted.tif", GREY, photometric="miniswhite"), None)
    assert torch.equal(inverted, 255 - image)


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


def test_png_jpeg_and_palettes(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(RGB).save(tmp_path / name)
        assert read_image(tmp_path / name, None).shape == (20, 30, 3)
        assert image_size(tmp_path / name) == (20, 30)
    assert torch.equal(read_image(tmp_path / "a.png", None), torch.from_numpy(RGB))
    Image.fromarray(RGB).quantize(16).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", None).shape == (20, 30, 3)


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
        read_mask(write(tmp_path / "class1.tif", RGB, photometric="rgb"))


@pytest.mark.parametrize("keep", [0, 3, 60, 400, -10])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_truncated_files_are_named(tmp_path: Path, keep: int, compression: str | None) -> None:
    whole = write(tmp_path / "whole.tif", RGB, photometric="rgb", compression=compression).read_bytes()
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
