"""OME-Zarr as zarr writes it: images, plates, series, channels, levels, and what is none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn.data.picture import open_pictures, read_image
from maskrcnn.data.reader import image_size, open_stored, read_mask
from maskrcnn.errors import InputError
from tests.data.microscope_files import halved, write_ome_zarr, write_plate

zarr = pytest.importorskip("zarr")

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 40000, (2, 3, 2, 70, 90), dtype=np.uint16)  # t, c, z, y, x
VERSIONS = ("0.4", "0.5")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_time_and_depth_is_a_picture_with_its_levels(tmp_path: Path, version: str) -> None:
    path = write_ome_zarr(tmp_path / "s.zarr", STACK, "tczyx", version, labels=("DAPI", "GFP", "RFP"))
    pictures = open_stored(path)
    assert [picture.name for picture in pictures] == [f"s.zarr#t{t}_z{z}" for t in range(2) for z in range(2)]
    for picture, planes in zip(pictures, np.moveaxis(STACK, 2, 1).reshape(4, 3, 70, 90), strict=True):
        assert picture.channels == ("DAPI", "GFP", "RFP")
        assert np.array_equal(picture.whole(), np.moveaxis(planes, 0, 2))
        assert np.array_equal(picture.read(13, 5, 40, 50), np.moveaxis(planes, 0, 2)[13:53, 5:55])
        (level,) = picture.levels
        assert level.size == (35, 45)
        assert np.array_equal(level.read(3, 4, 20, 30), np.moveaxis([halved(p) for p in planes], 0, 2)[3:23, 4:34])
        assert picture.pixel_size is not None
        assert picture.pixel_size.micrometres() == 0.5
    two = open_pictures(path, None, channels=[2, 0])[1]
    assert np.array_equal(two.raw(0, 0, 70, 90)[:, :, :2], np.moveaxis(STACK[0, [2, 0], 1], 0, 2))
    coarse = open_stored(path, level=1, channels=[1])[3]
    assert np.array_equal(coarse.whole(), halved(STACK[1, 1, 1]))
    assert coarse.pixel_size is not None
    assert coarse.pixel_size.micrometres() == 1.0
    with pytest.raises(InputError, match="has the levels 0 to 1"):
        open_stored(path, level=2)


@pytest.mark.parametrize("version", VERSIONS)
def test_fields_of_a_plate_say_where_they_come_from(tmp_path: Path, version: str) -> None:
    fields = [STACK[:, n, 0] for n in range(3)]
    path = write_plate(tmp_path / "plate.zarr", {"B/3": fields[:2], "C/11": fields[2:]}, "tyx", version)
    pictures = open_stored(path)
    places = [f"{field}_t{t}" for field in ("B03_f0", "B03_f1", "C11_f0") for t in range(2)]
    assert [picture.name for picture in pictures] == [f"plate.zarr#{place}" for place in places]
    for picture, plane in zip(pictures, np.stack(fields).reshape(-1, 70, 90), strict=True):
        assert np.array_equal(picture.whole(), plane)
    well = open_stored(path / "B" / "3")
    assert [picture.name for picture in well] == ["3#f0_t0", "3#f0_t1", "3#f1_t0", "3#f1_t1"]
    image = open_stored(path / "B" / "3" / "1")
    assert np.array_equal(image[1].whole(), fields[1][1])
    assert torch.equal(read_image(f"{path}#C11_f0_t1"), read_image(f"{path / 'C' / '11' / '0'}#t1"))


@pytest.mark.parametrize("listed", [True, False])
def test_series_of_bioformats2raw_are_scenes(tmp_path: Path, listed: bool) -> None:
    root = zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=2)
    root.attrs.put({"bioformats2raw.layout": 3})
    if listed:
        root.create_group("OME").attrs.put({"series": ["0", "1"]})
    for number in range(2):
        write_ome_zarr(tmp_path / "b.zarr" / str(number), STACK[:1, number : number + 1, :1], "tczyx")
    first, second = open_stored(tmp_path / "b.zarr")
    assert [first.name, second.name] == ["b.zarr#s0", "b.zarr#s1"]
    assert np.array_equal(second.whole(), STACK[0, 1, 0])


def test_a_picture_and_its_labels(tmp_path: Path) -> None:
    """As training reads them: a grey picture, and an image of ids in its labels/."""
    write_ome_zarr(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    ids = RNG.integers(0, 70000, (70, 90)).astype(np.uint32)
    write_ome_zarr(tmp_path / "a.zarr" / "labels" / "cells", ids, "yx", levels=1)
    assert read_image(tmp_path / "a.zarr").shape == (70, 90, 3)
    assert image_size(tmp_path / "a.zarr") == (70, 90)
    assert np.array_equal(read_mask(tmp_path / "a.zarr" / "labels" / "cells"), ids)


def test_chunks_of_several_channels_and_depths_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", STACK, "tczyx", levels=1)
    array = zarr.open_group(path, mode="r+").create_array(
        "0", shape=STACK.shape, chunks=(1, 3, 2, 40, 40), dtype="u2", overwrite=True
    )
    array[...] = STACK
    read: list[Any] = []
    original = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: (read.append(key), original(self, key))[1])
    pictures = open_stored(path)
    for z in range(2):
        assert np.array_equal(pictures[z].whole(), np.moveaxis(STACK[0, :, z], 0, 2))
    assert len(read) == 6


def test_chunks_are_read_by_several_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.data.stored.BLOCK_CACHE", 1 << 14)
    pictures = open_pictures(write_ome_zarr(tmp_path / "a.zarr", STACK[:, :, 0], "tcyx"), None)

    def same(turn: int) -> bool:
        return np.array_equal(
            pictures[turn % 2].raw(16, 16, 50, 70), np.moveaxis(STACK[turn % 2, :, 0], 0, 2)[16:66, 16:86]
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(40)))


@pytest.mark.parametrize(
    ("unit", "scale", "expected"),
    [("micrometer", 0.25, 0.25), ("nanometer", 325.0, 0.325), ("millimeter", 0.001, 1.0), (None, 0.25, None)],
)
def test_pixel_sizes_have_units(tmp_path: Path, unit: str | None, scale: float, expected: float | None) -> None:
    """A scale without a unit is a number of pixels; that of the whole image counts too."""
    path = write_ome_zarr(tmp_path / "a.zarr", STACK[0, 0, 0], "yx", pixel_size=scale / 2)
    group = zarr.open_group(path, mode="r+")
    attributes = group.attrs.asdict()
    attributes["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [2.0, 2.0]}]
    for axis in attributes["multiscales"][0]["axes"]:
        del axis["unit"]
        axis |= {} if unit is None else {"unit": unit}
    group.attrs.put(attributes)
    (picture,) = open_stored(path)
    found = None if picture.pixel_size is None else picture.pixel_size.micrometres()
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "without multiscales, a plate or series"),
        ({"multiscales": [{"axes": ["x", "y"], "datasets": [{"path": "0"}]}]}, "axes xy of size"),
        ({"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]}, "axes cyx of size"),
        ({"multiscales": [{"axes": ["y", "x"], "datasets": [{"path": "9"}]}]}, "not a picture that can be read"),
        ({"multiscales": []}, "not a picture that can be read"),
        ({"plate": {}}, "not a picture that can be read"),
    ],
)
def test_what_is_no_ome_zarr_is_named(tmp_path: Path, attributes: dict[str, Any], message: str) -> None:
    path = write_ome_zarr(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    zarr.open_group(path, mode="r+").attrs.put(attributes)
    with pytest.raises(InputError, match=message) as error:
        open_pictures(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_zarr_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder without Zarr metadata"):
        open_pictures(tmp_path)
    write_ome_zarr(tmp_path / "a.zarr", STACK[0, 0, 0], "yx")
    for chunk in (tmp_path / "a.zarr" / "0").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith("."):
            chunk.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"a\.zarr: not a picture that can be read"):
        read_image(tmp_path / "a.zarr")
