"""The plugin in the real napari, without a screen; skipped where napari is not (``pip install .[napari]``)."""

from __future__ import annotations

import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.conftest import ROOT
from tests.export.cells import NAMES, crowd, picture_of, reader_of

if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    pytest.skip("napari needs a display with OpenGL, such as xvfb-run gives", allow_module_level=True)
napari = pytest.importorskip("napari")
npe2 = pytest.importorskip("npe2")

from qtpy.QtWidgets import QApplication  # noqa: E402 (needs napari)

import maskrcnn  # noqa: E402
from maskrcnn import pretrained  # noqa: E402
from maskrcnn.export.config import InferConfig  # noqa: E402
from maskrcnn.export.infer import infer  # noqa: E402
from maskrcnn.export.labels import write_labels  # noqa: E402
from maskrcnn.export.table import write_table  # noqa: E402
from maskrcnn.napari.widget import FindCells, plane_of  # noqa: E402

MANIFEST = ROOT / "maskrcnn" / "napari" / "napari.yaml"


@pytest.fixture(scope="module", autouse=True)
def plugin() -> None:
    """The plugin as napari finds it by the entry point, also where the package is not installed with it."""
    manager = npe2.PluginManager.instance()
    if "maskrcnn" not in manager:
        manager.register(npe2.PluginManifest.from_file(MANIFEST))


@pytest.fixture
def viewer() -> Iterator[Any]:
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        QApplication.processEvents()
        assert time.monotonic() < end
        time.sleep(0.01)


def tissue() -> np.ndarray:
    path = Path(pretrained.__file__).parent / "examples" / "tissue.png"
    return np.asarray(Image.open(path).convert("RGB"))[:128, :128]


def widget_of(viewer: Any, **options: str) -> FindCells:
    _, widget = viewer.window.add_plugin_dock_widget("maskrcnn", "Find cells")
    assert isinstance(widget, FindCells)
    for name, value in options.items():
        getattr(widget, name).value = value
    return widget


def test_the_manifest_is_valid_and_is_the_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["napari.manifest"] == {"maskrcnn": "maskrcnn.napari:napari.yaml"}
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    assert manifest.name == "maskrcnn"


def test_the_widget_finds_what_the_package_finds(viewer: Any) -> None:
    viewer.add_image(tissue(), name="a", rgb=True, scale=(0.5, 0.5), translate=(3, 4))
    widget = widget_of(viewer, threshold="0.3", diameter="20")
    worker = widget.start()
    assert not widget.find.enabled
    assert widget.cancel.enabled
    wait_until(lambda: widget.find.enabled)
    model = maskrcnn.load()
    cells = model(tissue(), diameter=20).filter(0.3)
    assert len(cells) > 5
    layer = viewer.layers["a cells"]
    np.testing.assert_array_equal(layer.data, cells.to_labels().numpy())
    assert (layer.scale.tolist(), layer.translate.tolist()) == ([0.5, 0.5], [3, 4])
    assert layer.features["index"].tolist() == list(range(1, len(cells) + 1))
    assert layer.features["class"].tolist() == [model.class_names[label - 1] for label in cells.labels.tolist()]
    assert widget.status.value == f"{len(cells)} cells, diameter 20.0 pixels"
    assert (widget.progress.value, widget.progress.max) == (1, 1)
    assert not worker.is_running


def test_cancel_stops_between_two_tiles(viewer: Any) -> None:
    viewer.add_image(np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8), name="a")
    widget = widget_of(viewer, diameter="none", tile="64")
    tiles = []
    seen = widget._next_tile

    def next_tile(done: int, total: int) -> None:
        tiles.append((done, total))
        if done == 3:
            widget.cancel.changed.emit(True)  # as a click does
        seen(done, total)

    widget._next_tile = next_tile  # type: ignore[method-assign]
    widget.start()
    wait_until(lambda: widget.find.enabled)
    assert [done for done, _ in tiles] == [1, 2, 3]
    assert tiles[0][1] > 10
    assert widget.status.value == "cancelled"
    assert [layer.name for layer in viewer.layers] == ["a"]
    assert widget.progress.max == tiles[0][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diameter": "big"}, "diameter is big; expected auto or a number"),
        ({"threshold": "2"}, "threshold is 2.0; expected"),
        ({"tile": "x"}, "tile is x; expected auto or a number"),
        ({"checkpoint": "missing.pt"}, "missing.pt"),
    ],
)
def test_mistakes_are_said_in_a_line(viewer: Any, options: dict[str, str], message: str) -> None:
    viewer.add_image(np.zeros((64, 64), np.uint8), name="a")
    widget = widget_of(viewer, **options)
    widget.start()
    wait_until(lambda: widget.find.enabled)
    assert message in widget.status.value
    assert len(viewer.layers) == 1


def test_no_picture(viewer: Any) -> None:
    widget = widget_of(viewer)
    assert widget.start() is None
    assert widget.status.value == "open a picture first"


def test_the_plane_that_is_shown(viewer: Any) -> None:
    stack = np.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    deep = viewer.add_image(stack)
    shallow = viewer.add_image(stack[0])
    colours = viewer.add_image(np.zeros((4, 5, 6, 3), np.uint8), rgb=True)
    pyramid = viewer.add_image([stack[0], stack[0, :, ::2, ::2]], multiscale=True)
    viewer.dims.set_current_step(0, 2)
    viewer.dims.set_current_step(1, 3)
    step = viewer.dims.current_step
    np.testing.assert_array_equal(plane_of(deep, step), stack[2, 3])
    np.testing.assert_array_equal(plane_of(shallow, step), stack[0, 3])
    assert plane_of(colours, step).shape == (5, 6, 3)
    np.testing.assert_array_equal(plane_of(pyramid, step), stack[0, 3])


def test_napari_opens_label_images_and_run_folders(viewer: Any, tmp_path: Path) -> None:
    for folder in ("cells", "labels", "csv"):
        (tmp_path / folder).mkdir()
    (tmp_path / "infer.json").write_text("{}")
    for name in ("a", "b"):
        write_labels(tmp_path / "labels" / f"{name}.tif", crowd())
    write_table(tmp_path / "csv" / "a.csv", crowd(), NAMES, reader_of(picture_of(crowd().size)))
    (layer,) = viewer.open(str(tmp_path / "labels" / "a.tif"), plugin="maskrcnn")
    assert isinstance(layer, napari.layers.Labels)
    np.testing.assert_array_equal(layer.data, crowd().to_labels().numpy())
    assert layer.features["class"].tolist() == [NAMES[label - 1] for label in crowd().labels.tolist()]
    both = viewer.open(str(tmp_path), plugin="maskrcnn")
    assert [layer.name for layer in both] == ["a cells [1]", "b cells"]
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, np.zeros((4, 4), np.uint8))
    (layer,) = viewer.open(str(other))  # napari's own reader
    assert isinstance(layer, napari.layers.Image)


def test_a_run_of_the_package_is_one(viewer: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", tissue())
    infer(InferConfig(images=(tmp_path / "a.tif",), out=tmp_path / "out", format=("labels", "csv"), diameter=20.0))
    (layer,) = viewer.open(str(tmp_path / "out"), plugin="maskrcnn")
    assert layer.name == "a cells"
    assert set(np.unique(layer.data)) - {0} <= set(layer.features["index"])


@pytest.mark.parametrize("name", ["fluorescence", "tissue", "smear"])
def test_examples(viewer: Any, name: str) -> None:
    (layer,) = viewer.open_sample("maskrcnn", name)
    assert layer.rgb
    assert layer.data.ndim == 3
