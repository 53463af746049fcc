"""Label images, compared with full-size masks of the cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from maskrcnn.data.reader import read_mask
from maskrcnn.export import labels as labels_module
from maskrcnn.export.labels import needs_bigtiff, write_class_labels, write_labels
from tests.export.cells import apart, crowd, detections_of, masks_of


def test_a_label_image_holds_the_pixels_of_every_cell(tmp_path: Path) -> None:
    write_labels(tmp_path / "new" / "a.tif", apart())
    image = tifffile.imread(tmp_path / "new" / "a.tif")
    expected = np.zeros(apart().size, np.uint32)
    for value, mask in enumerate(masks_of(apart()), start=1):
        assert not expected[mask].any()
        expected[mask] = value
    np.testing.assert_array_equal(image, expected)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.tif"]


def test_the_higher_score_is_seen_as_in_to_labels(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.tif", crowd())
    masks = masks_of(crowd())
    assert masks.sum(axis=0).max() > 2
    best = np.where(masks, crowd().scores.numpy()[:, None, None], -1.0)
    winner = len(masks) - best[::-1].argmax(axis=0)  # of equal scores the last
    expected = np.where(masks.any(axis=0), winner, 0)
    image = tifffile.imread(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(image, crowd().to_labels().numpy())


def check_plain_imagej_opens_it(page: tifffile.TiffPage) -> None:
    """What ij.io.TiffDecoder and ImageReader accept (1.52 to 1.54)."""
    assert not page.is_tiled
    assert page.compression in (1, 5, 8, 32946, 32773)  # none, LZW, Deflate (two numbers), PackBits
    assert page.predictor == 1
    assert page.samplesperpixel == 1
    assert page.dtype in (np.uint8, np.uint16, np.uint32)
    assert not page.parent.is_bigtiff
    assert page.imagewidth * page.imagelength < 2**31


def test_plain_imagej_opens_the_file(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.tif", crowd())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        (page,) = tiff.pages
        assert isinstance(page, tifffile.TiffPage)
        check_plain_imagej_opens_it(page)
        assert (page.dtype, page.shape, page.rowsperstrip) == (np.uint16, crowd().size, 256)
        assert tiff.filehandle.size < 30_000
    check_that_others_read(tmp_path / "a.tif")


def check_that_others_read(path: Path) -> None:
    expected = crowd().to_labels().numpy()
    np.testing.assert_array_equal(tifffile.imread(path), expected)
    np.testing.assert_array_equal(read_mask(path).numpy(), expected)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)  # libtiff


@pytest.mark.parametrize(("count", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_ids_that_16_bits_cannot_hold(tmp_path: Path, count: int, dtype: type) -> None:
    one = detections_of([np.ones((1, 1), bool)], [(3, 5)], [0.9], (300, 40))
    many = one.select(torch.zeros(count, dtype=torch.int64))
    write_labels(tmp_path / "a.tif", many)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        check_plain_imagej_opens_it(tiff.pages[0])  # type: ignore[arg-type]
        image = tiff.asarray()
    assert image.dtype == dtype
    assert image[3, 5] == count  # of equal scores, the last
    assert (image > 0).sum() == 1


@pytest.mark.parametrize("big", [False, True])
def test_a_larger_picture_has_compressed_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: bool) -> None:
    monkeypatch.setattr(labels_module, "LARGEST_IN_STRIPS", crowd().size[0] * crowd().size[1] - 1)
    if big:
        monkeypatch.setattr(labels_module, "needs_bigtiff", lambda *_: True)
    write_labels(tmp_path / "a.tif", crowd())
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        (page,) = tiff.pages
        assert isinstance(page, tifffile.TiffPage)
        assert (page.is_tiled, page.tilewidth, page.tilelength) == (True, 256, 256)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert (page.dtype, page.shape) == (np.uint16, crowd().size)
        assert tiff.is_bigtiff == big
        assert tiff.filehandle.size < 30_000
    check_that_others_read(tmp_path / "a.tif")


def test_bigtiff_where_the_tiles_might_not_fit_into_4_gib() -> None:
    four, two = np.dtype(np.uint32), np.dtype(np.uint16)
    assert not needs_bigtiff((20_000, 20_000), four)
    assert needs_bigtiff((32_768, 32_768), four)
    assert not needs_bigtiff((32_768, 32_768), two)
    assert needs_bigtiff((1, 5_000_000), four)  # tiles are written whole


def test_a_file_a_class_with_the_same_numbers(tmp_path: Path) -> None:
    paths = write_class_labels(tmp_path / "picture", crowd(), 4)
    assert [path.name for path in paths] == ["class1.tif", "class2.tif", "class3.tif", "class4.tif"]
    for number, path in enumerate(paths, start=1):
        kept = torch.nonzero(crowd().labels == number)[:, 0]
        ids = np.concatenate([[0], kept.numpy() + 1])
        expected = ids[crowd().select(kept).to_labels().numpy()]
        assert expected.any() == (number < 4)
        np.testing.assert_array_equal(tifffile.imread(path), expected)
    with pytest.raises(ValueError, match=r"detection 2 is of class 3, expected 1 to 2"):
        write_class_labels(tmp_path / "picture", crowd(), 2)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("size", [(512, 512), (513, 511), (257, 300)])
def test_cells_at_the_borders_of_tiles(
    tmp_path: Path, size: tuple[int, int], tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells of 2x2 pixels whose first row and column is the last, the last but one or the first of a tile."""
    if tiled:
        monkeypatch.setattr(labels_module, "LARGEST_IN_STRIPS", 0)
    corners = [(y, x) for y in (254, 255, 256) for x in (253, 255, 257)]
    for corner in corners:
        cell = detections_of([np.ones((2, 2), bool)], [corner], [0.5], size)
        write_labels(tmp_path / "a.tif", cell)
        inside = np.argwhere(tifffile.imread(tmp_path / "a.tif") == 1)
        expected = [[corner[0] + y, corner[1] + x] for y in (0, 1) for x in (0, 1) if corner[0] + y < size[0]]
        assert inside.tolist() == expected
