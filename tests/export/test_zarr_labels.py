"""Label images in the labels/ group of the OME-Zarr that was predicted, of NGFF 0.4 and 0.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn.data.picture import open_pictures
from maskrcnn.data.reader import read_mask
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.export.zarr_labels import create_zarr_labels, write_zarr_labels
from tests.data.microscope_files import write_ome_zarr, write_plate
from tests.export.cells import crowd
from tests.export.runs import records

zarr = pytest.importorskip("zarr")

SIZE = crowd().size
VERSIONS = ("0.4", "0.5")


def image(path: Path, version: str, axes: str = "tcyx", **options: Any) -> Path:
    shape = [{"t": 2, "c": 3, "z": 2}[axis] for axis in axes[:-2]]
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, *SIZE), dtype=np.uint8)
    return write_ome_zarr(path, pixels, axes, version, levels=3, chunk=128, **options)


@pytest.mark.parametrize("chunk", [512, 100])
@pytest.mark.parametrize("version", VERSIONS)
def test_each_level_holds_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, chunk: int) -> None:
    """The value of each pixel of a coarser level is that of the full size at its centre."""
    monkeypatch.setattr("maskrcnn.export.zarr_labels.CHUNK", chunk)
    path = image(tmp_path / "a.zarr", version)
    create_zarr_labels([path])
    write_zarr_labels(path, 1, crowd())
    expected = crowd().to_labels().numpy()
    for level in range(3):
        array = zarr.open_array(path / "labels" / "maskrcnn" / str(level), mode="r")
        assert array.shape == (2, SIZE[0] >> level, SIZE[1] >> level)
        assert array.dtype == np.uint32
        assert not array[0].any()
        half = (1 << level) // 2
        assert np.array_equal(array[1], expected[half :: 1 << level, half :: 1 << level])
    assert np.array_equal(read_mask(f"{path / 'labels' / 'maskrcnn'}#t1"), expected)
    write_zarr_labels(path, 1, crowd().select(np.zeros(0, np.int64)))  # fewer cells of a later run
    assert not zarr.open_array(path / "labels" / "maskrcnn" / "0", mode="r")[1].any()


@pytest.mark.parametrize("version", VERSIONS)
def test_metadata_are_those_of_the_image_without_channels(tmp_path: Path, version: str) -> None:
    path = image(tmp_path / "a.zarr", version)
    create_zarr_labels([path])
    before, labels, group = (
        zarr.open_group(path / place, mode="r").attrs.asdict() for place in ("", "labels", "labels/maskrcnn")
    )
    if version == "0.5":
        assert labels["ome"]["version"] == group["ome"]["version"] == "0.5"
        before, labels, group = (each["ome"] for each in (before, labels, group))
    assert labels["labels"] == ["maskrcnn"]
    assert group["image-label"]["source"] == {"image": "../../"}
    (multiscale,), (original,) = group["multiscales"], before["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["t", "y", "x"]
    assert multiscale["axes"][1:] == original["axes"][2:]
    scales = [dataset["coordinateTransformations"][0]["scale"] for dataset in multiscale["datasets"]]
    assert scales == [[1, 0.5, 0.5], [1, 1, 1], [1, 2, 2]]
    assert [dataset["path"] for dataset in multiscale["datasets"]] == ["0", "1", "2"]


@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_models_find_nothing_wrong(tmp_path: Path, version: str) -> None:
    models = pytest.importorskip("ome_zarr_models")
    path = image(tmp_path / "a.zarr", version)
    create_zarr_labels([path])
    write_zarr_labels(path, 0, crowd())
    module = getattr(models, f"v{version.replace('.', '')}")
    label = module.ImageLabel.from_zarr(zarr.open_group(path / "labels" / "maskrcnn", mode="r"))
    assert len((label.attributes if version == "0.4" else label.ome_attributes).multiscales[0].datasets) == 3
    module.Labels.from_zarr(zarr.open_group(path / "labels", mode="r"))
    module.Image.from_zarr(zarr.open_group(path, mode="r"))


def test_ome_zarrs_own_reader_finds_the_labels(tmp_path: Path) -> None:
    """As napari-ome-zarr opens a store: the picture, and the labels as its child."""
    reader = pytest.importorskip("ome_zarr.reader")
    from ome_zarr.io import parse_url

    path = image(tmp_path / "a.zarr", "0.4")
    create_zarr_labels([path])
    write_zarr_labels(path, 0, crowd())
    location = parse_url(path)
    assert location is not None
    nodes = list(reader.Reader(location)())
    (found,) = (node for node in nodes if node.zarr.basename() == "maskrcnn")
    assert np.array_equal(np.asarray(found.data[0])[0], crowd().to_labels().numpy())


def test_other_labels_and_other_times_stay(tmp_path: Path) -> None:
    path = image(tmp_path / "a.zarr", "0.4")
    root = zarr.open_group(path, mode="r+")
    root.create_group("labels").attrs.put({"labels": ["by hand"]})
    create_zarr_labels([path])
    write_zarr_labels(path, 0, crowd())
    create_zarr_labels([path])  # of a run that goes on
    assert root["labels"].attrs["labels"] == ["by hand", "maskrcnn"]
    assert zarr.open_array(path / "labels" / "maskrcnn" / "0", mode="r")[0].any()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.usefixtures("quick")
def test_a_plate_is_predicted_into_itself(tiny_run: Path, tmp_path: Path, version: str) -> None:
    fields = [np.random.default_rng(n).integers(0, 255, (2, 48, 64), dtype=np.uint8) for n in range(3)]
    plate = write_plate(tmp_path / "plate.zarr", {"B/3": fields[:2], "C/11": fields[2:]}, "tyx", version)
    options = {"images": (plate,), "out": tmp_path / "out", "device": "cpu", "format": ("zarr", "csv", "labels")}
    assert not infer(InferConfig(tiny_run / "best.pt", **options)).failures
    places = [f"{field}_t{t}" for field in ("B03_f0", "B03_f1", "C11_f0") for t in range(2)]
    assert sorted(records(tmp_path / "out")) == [f"plate_{place}" for place in places]
    for place in places:
        well, field, t = place.split("_")
        folder = plate / well[0] / str(int(well[1:])) / field[1:]
        inside = read_mask(f"{folder / 'labels' / 'maskrcnn'}#{t}")
        assert inside.max() == 2
        assert np.array_equal(inside, read_mask(tmp_path / "out" / "labels" / f"plate_{place}.tif"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "csv").iterdir()}
    infer(InferConfig(tiny_run / "best.pt", **options))  # nothing is predicted again, though labels were written
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "csv").iterdir()} == before


@pytest.mark.usefixtures("quick")
def test_labels_that_are_asked_for_later_are_written(tiny_run: Path, tmp_path: Path) -> None:
    path = image(tmp_path / "a.zarr", "0.5", "yx")
    options = {"images": (path,), "out": tmp_path / "out", "device": "cpu"}
    for formats in (("labels",), ("labels", "zarr")):
        assert not infer(InferConfig(tiny_run / "best.pt", **options, format=formats)).failures
    inside = read_mask(path / "labels" / "maskrcnn")
    assert inside.any()
    assert np.array_equal(inside, read_mask(tmp_path / "out" / "labels" / "a.tif"))


def test_other_pictures_have_no_place_for_labels(tiny_run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"--format zarr: .*a\.png is no OME-Zarr"):
        infer(InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path / "o", device="cpu", format=("zarr",)))
    with pytest.raises(InputError, match=r"--level is 1; --format zarr writes labels of the full size"):
        InferConfig(images=(tmp_path,), level=1, format=("zarr",)).check()


def test_a_folder_of_stores_and_files_is_listed(tmp_path: Path) -> None:
    from maskrcnn.export.jobs import find_jobs

    image(tmp_path / "b.zarr", "0.5", "yx")
    image(tmp_path / "c.ome.zarr", "0.4", "tyx")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    jobs = find_jobs(InferConfig(images=(tmp_path,)))
    assert [job.key for job in jobs] == ["a", "b", "c.ome_t0", "c.ome_t1"]
    assert len(open_pictures(jobs[2].path)) == 2
