"""The widget in napari that finds the cells of a picture."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import ComboBox, Container, Label, LineEdit, ProgressBar, PushButton, create_widget
from napari.layers import Image
from napari.qt.threading import create_worker
from superqt.utils import ensure_main_thread

from maskrcnn import pretrained
from maskrcnn.data.arrays import picture_of
from maskrcnn.errors import InputError
from maskrcnn.napari.reader import features
from maskrcnn.options import Fraction, check_value
from maskrcnn.predict.load import load
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections

if TYPE_CHECKING:
    from napari.viewer import Viewer

AUTO, FITTED = "auto", "fitted"


class Cancelled(Exception):
    """Raised between two tiles when the prediction is no longer wanted."""


class FindCells(Container):
    """Finds the cells of an image layer in a thread of its own, and adds them as a Labels layer.

    Of a stack, the plane that is shown is predicted. The new layer has the scale and position of the picture; its
    features are the class and the score of each cell.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        self._viewer = napari_viewer  # the name by which napari recognises it
        self._loaded: tuple[tuple[str, int | None], Predictor] | None = None
        self._cancelled = Event()
        self.picture: Any = create_widget(annotation=Image, name="picture")
        self.model: Any = ComboBox(name="model", choices=list(pretrained.names()), tooltip=MODEL)
        self.checkpoint: Any = LineEdit(name="checkpoint", tooltip=CHECKPOINT)
        self.diameter: Any = LineEdit(name="diameter", value=AUTO, tooltip=DIAMETER)
        self.threshold: Any = LineEdit(name="threshold", value=FITTED, tooltip=THRESHOLD)
        self.tile: Any = LineEdit(name="tile", value=AUTO, tooltip=TILE)
        self.find: Any = PushButton(text="Find cells")
        self.cancel: Any = PushButton(text="Cancel", enabled=False)
        self.progress: Any = ProgressBar(value=0, min=0, max=1, label="tiles")
        self.status: Any = Label(value="")
        super().__init__(
            widgets=[
                *(self.picture, self.model, self.checkpoint, self.diameter, self.threshold, self.tile),
                *(self.find, self.cancel, self.progress, self.status),
            ]
        )
        self.find.changed.connect(self.start)
        self.cancel.changed.connect(self._cancelled.set)

    def start(self) -> Any:
        """Start to predict the chosen picture; returns the worker, or None if there is nothing to predict."""
        layer = self.picture.value
        if layer is None:
            self.status.value = "open a picture first"
            return None
        self._cancelled.clear()
        self.find.enabled, self.cancel.enabled, self.status.value = False, True, "looking at the picture ..."
        options = (self.checkpoint.value.strip() or self.model.value, self.diameter.value, self.threshold.value)
        return create_worker(
            self._predict,
            plane_of(layer, self._viewer.dims.current_step),
            *options,
            self.tile.value,
            _connect={"returned": lambda found: self._show(layer, *found), "finished": self._finish},
        )

    def _predict(self, array: np.ndarray, name: str, diameter: str, threshold: str, tile: str) -> Any:
        """In the worker's thread: the cells and their classes, or a line that says why there are none."""
        try:
            model = self._load(name, None if tile.strip() == AUTO else int(_number("tile", tile, AUTO)))
            size: Any = diameter.strip() if diameter.strip() in (AUTO, "none") else _number("diameter", diameter, AUTO)
            limit: Any = model.score_threshold
            if threshold.strip() != FITTED:
                limit = _number("threshold", threshold, FITTED)
                check_value("threshold", limit, Fraction)
            picture = picture_of(array, model.percentiles, channels=model.channels)
            if size == AUTO and model.diameter is None:
                size = None  # a network that was trained at the pictures' own scale
            cells = model.predict(picture, self._next_tile, size)
            return cells.filter(limit), model.class_names, ""
        except Cancelled:
            return None, (), "cancelled"
        except InputError as error:
            return None, (), str(error)

    def _load(self, name: str, tile: int | None) -> Predictor:
        if self._loaded is None or self._loaded[0] != (name, tile):
            self._loaded = (name, tile), load(name, tile=tile)
        return self._loaded[1]

    def _next_tile(self, done: int, total: int) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        self._show_progress(done, total)

    @ensure_main_thread
    def _show_progress(self, done: int, total: int) -> None:
        self.progress.max, self.progress.value = total, done
        self.status.value = f"{done} of {total} tiles"

    def _show(self, layer: Image, cells: Detections | None, class_names: tuple[str, ...], message: str) -> None:
        if cells is None:
            self.status.value = message
            return
        classes = [class_names[label - 1] for label in cells.labels.tolist()]
        self._viewer.add_labels(
            cells.to_labels().numpy(),
            name=f"{layer.name} cells",
            features=features(list(range(1, len(cells) + 1)), classes, cells.scores.tolist()),
            scale=layer.scale[-2:],
            translate=layer.translate[-2:],
        )
        diameter = "" if cells.diameter is None else f", diameter {cells.diameter:.1f} pixels"
        self.status.value = f"{len(cells)} cells{diameter}"

    def _finish(self) -> None:
        self.find.enabled, self.cancel.enabled = True, False


def plane_of(layer: Image, step: tuple[int, ...]) -> np.ndarray:
    """The plane of a layer at ``step`` of the viewer's sliders, [H, W] or [H, W, 3 or 4]; the finest of a pyramid."""
    data = layer.data[0] if layer.multiscale else layer.data
    sliders = data.ndim - (3 if layer.rgb else 2)
    return np.asarray(data[tuple(step[len(step) - 2 - sliders : len(step) - 2])])


def _number(name: str, text: str, word: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} is {text}; expected {word} or a number") from None


MODEL = "A model that comes with the package."
CHECKPOINT = "best.pt of a run of your own, in place of the model."
DIAMETER = "Median diameter of the cells in pixels; auto: estimated; none: the picture is predicted at its own scale."
THRESHOLD = "Minimum score of a cell, 0 to 1; fitted: as fitted on validation pictures in training."
TILE = "Side in pixels of the tiles in which larger pictures are predicted; auto: from the memory."
