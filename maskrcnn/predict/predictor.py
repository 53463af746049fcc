"""From a checkpoint to cells: the three-line API."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from maskrcnn import pretrained
from maskrcnn.checkpoint import build_model, load_checkpoint, locate
from maskrcnn.data.picture import Picture, open_pictures, picture_of
from maskrcnn.data.transforms import scale_to
from maskrcnn.device import Precision, choose_device
from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.limits import Limits
from maskrcnn.options import Fraction, Percentile, Range, checked
from maskrcnn.predict.augment import Augment
from maskrcnn.predict.capacity import Capacity, default_tile
from maskrcnn.predict.detector import Detector
from maskrcnn.predict.diameter import estimate_diameter
from maskrcnn.predict.tiles import Tile, merge_tiles, tile_picture
from maskrcnn.predict.windows import representative_windows
from maskrcnn.structures import Detections

OVERLAP = 128
"""Default overlap of tiles in pixels: more than a cell; of small tiles half of them."""

TileSide = Annotated[int, Range(32, 65536)]
Overlap = Annotated[int, Range(0, 32768)]
BatchSize = Annotated[int, Range(1, 65536)]
Diameter = Annotated[float, Range(0, 1_000_000, open_low=True)] | Literal["auto", "none"]
"""How large cells are taken to be: their median diameter in pixels of the picture (of the circle of equal area); auto:
estimated; none: the picture is predicted at its own scale."""

SCORE_THRESHOLD = 0.5
"""The score from which a cell is to be believed, where none was fitted."""


class Predictor:
    """A trained network with the intensity normalisation that it was trained with.

    >>> model = maskrcnn.load("runs/first/best.pt")  # doctest: +SKIP
    >>> cells = model("picture.tif")  # doctest: +SKIP
    >>> len(cells), cells.boxes, cells.to_labels()  # doctest: +SKIP

    Attributes:
        percentiles: between which a picture's intensities are stretched; None: they are taken as they are.
        class_names: of classes 1..K.
        detector: the network on the tiles of a picture, with its device, precision and limits.
        capacity: pictures with a side above ``capacity.tile`` pixels are predicted in tiles of that side, which share
            ``capacity.overlap`` pixels with their neighbours (cells that are larger may be cut), and of which
            ``capacity.batch_size`` go through the network together.
        augment: views of each tile that are averaged (:mod:`maskrcnn.predict.augment`).
        diameter: the median diameter of cells, in pixels, that the network was trained for: pictures are brought to
            that scale, and tiles and overlap are pixels there. None: it was trained at the pictures' own scale.
        resize: the longer side, in pixels, to which each picture is brought, as in training; None: they are not.
        score_threshold: the score from which a cell is to be believed, one for each class.
        channels: those of a picture's channels that are shown to the network, as in training; None: grey or RGB.
        category_ids: the ids of classes 1..K in the COCO file that the network was trained on, else 1..K.

    One predictor may serve several threads at once: what a call needs is an argument of the call.
    """

    @checked
    def __init__(
        self,
        model: MaskRCNN,
        percentiles: tuple[Percentile, Percentile] | None,
        class_names: Sequence[str],
        device: torch.device,
        precision: Precision = "auto",
        tile: TileSide | None = None,
        overlap: Overlap | None = None,
        batch_size: BatchSize | None = None,
        augment: Augment = "none",
        box_score_threshold: Fraction | None = None,
        diameter: Annotated[float, Range(0, 1_000_000, open_low=True)] | None = None,
        score_threshold: Fraction | Sequence[Fraction] = SCORE_THRESHOLD,
        mask_threshold: Fraction = 0.5,
        channels: Sequence[Annotated[int, Range(0, 65535)]] | None = None,
        category_ids: Sequence[int] | None = None,
        resize: Annotated[int, Range(32, 16384, multiple_of=32)] | None = None,
    ) -> None:
        self.percentiles, self.channels = percentiles, None if channels is None else tuple(channels)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids or range(1, len(self.class_names) + 1))
        if len(self.category_ids) != len(class_names):
            count = len(self.category_ids)
            raise InputError(f"category_ids has {count} entries; expected {len(class_names)}, one per class")
        self.augment: Augment = augment
        self.diameter, self.resize = diameter, resize
        scores = [score_threshold] * len(class_names) if isinstance(score_threshold, float | int) else score_threshold
        self.score_threshold = tuple(map(float, scores))
        if len(self.score_threshold) != len(self.class_names):
            raise InputError(f"score_threshold has {len(scores)} entries; expected {len(class_names)}, one per class")
        tile = default_tile(device) if tile is None else tile
        overlap = min(OVERLAP, tile // 2) if overlap is None else overlap
        batch_size = (1 if device.type == "cpu" else 4) if batch_size is None else batch_size
        if overlap >= tile:
            raise InputError(f"overlap is {overlap}; expected less than the tile, {tile}")
        self.capacity = Capacity(tile, overlap, batch_size)
        limits = model.limits
        if box_score_threshold is not None:
            limits = replace(limits, score_threshold=box_score_threshold)
        model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.detector = Detector(model, device, precision, limits, self.capacity, mask_threshold=mask_threshold)

    def with_limits(self, limits: Limits) -> Predictor:
        """The same predictor with other limits; they share the network."""
        other = copy.copy(self)
        other.detector = replace(self.detector, limits=limits)
        return other

    def __call__(self, image: str | Path | np.ndarray | Tensor, diameter: Diameter | None = None) -> Detections:
        """Cells in one picture of any size.

        Args:
            image: a file (TIFF, PNG, JPEG), or an array [H, W], [H, W, 3] or [H, W, 4] of any integer or float type.
            diameter: see :meth:`predict`.

        Returns:
            Detections on the CPU, highest score first, in pixels of the picture. All that the network found: those to
            be believed are ``cells.filter(predictor.score_threshold)``.

        Raises:
            InputError: the file or array is no picture that can be used, or a stack of several.
        """
        return self.predict(self._open(image), diameter=diameter)

    def read(self, image: str | Path | np.ndarray | Tensor) -> Tensor:
        """The picture at its own scale: uint8 [H, W, 3], its intensities stretched as in training."""
        picture = self._open(image)
        return picture.read(0, 0, *picture.size)

    def _open(self, image: str | Path | np.ndarray | Tensor) -> Picture:
        if not isinstance(image, str | Path):
            return picture_of(image, self.percentiles, channels=self.channels)
        first, *others = open_pictures(image, self.percentiles, channels=self.channels)
        if others:
            raise InputError(f"{image}: {1 + len(others)} pages; open_pictures gives each of them to Predictor.predict")
        return first

    def predict(
        self,
        picture: Picture,
        progress: Callable[[int, int], object] | None = None,
        diameter: Diameter | None = None,
    ) -> Detections:
        """Cells in a picture, which is read tile by tile.

        Args:
            picture: of :func:`maskrcnn.data.picture.open_pictures`, with this predictor's ``percentiles``.
            progress: called after each batch with the tiles done and all tiles.
            diameter: median diameter of the picture's cells in its pixels, or ``none`` to predict it at its own scale.
                Default: ``auto``, an estimate, where the network was trained for cells of one size, else ``none``.

        Returns:
            Detections on the CPU, highest score first, in pixels of the picture; of a picture in tiles, masks are in
            half precision. Their ``diameter`` says how large cells were taken to be.

        Raises:
            InputError: a diameter that is not above 0, or one for a network that was trained at the pictures' own
                scale; the file is damaged.
        """
        size = self.find_diameter(picture, diameter)
        factor = 1.0 if size is None or self.diameter is None else scale_to(self.diameter, size)
        if self.resize is not None:
            factor = self.resize / max(picture.size)
        cells = self._predict(picture.rescaled(factor), progress)
        return replace(cells.resized(picture.size), diameter=size)

    def find_diameter(self, picture: Picture, diameter: Diameter | None = None) -> float | None:
        """The median diameter in pixels that the picture's cells are taken to have; None: it stays at its own scale.

        ``diameter`` and errors as in :meth:`predict`. Where ``auto`` finds no cell, the picture stays at its own scale.
        """
        if diameter == "none" or (diameter is None and self.diameter is None):
            return None
        if self.diameter is None:
            raise InputError(
                f"--diameter is {diameter}, but the network was trained at the pictures' own scale; expected none"
            )
        if diameter is None or diameter == "auto":
            return self._estimate(picture, self.diameter)
        if not 0 < diameter < math.inf:
            raise InputError(f"--diameter is {diameter}; expected pixels above 0, auto or none")
        return float(diameter)

    def _estimate(self, picture: Picture, canonical: float) -> float | None:
        try:
            return estimate_diameter(picture, partial(self.detector.detect, masks=False), canonical)
        except torch.cuda.OutOfMemoryError:
            raise InputError(
                "out of memory while looking for the size of cells; give --diameter, or choose --device cpu"
            ) from None

    def _predict(self, picture: Picture, progress: Callable[[int, int], object] | None) -> Detections:
        """The cells of a picture that is at the network's scale already."""
        while True:
            tiles = tile_picture(picture.size, self.capacity.tile, self.capacity.overlap)
            try:
                found = self._detect_tiles(picture, tiles, progress)
                break
            except torch.cuda.OutOfMemoryError:
                pass
            self.capacity.use_smaller_tiles()  # once the exception, which holds tensors, is gone
        if len(tiles) == 1:
            return found[0]
        cells, cut = merge_tiles(tiles, found, picture.size)
        if cut:
            print(
                f"warning: {picture.name}: {cut} cells reach across the overlap of tiles and may be cut; a larger "
                f"--overlap (now {self.capacity.overlap}) shows them whole",
                file=sys.stderr,
            )
        return cells

    def _detect_tiles(
        self, picture: Picture, tiles: Sequence[Tile], progress: Callable[[int, int], object] | None
    ) -> list[Detections]:
        found: list[Detections] = []
        detector = self.detector if len(tiles) == 1 else self._normalised_as_a_whole(picture)
        for images in _read_ahead(picture, tiles, self.capacity.batch_size):
            cells = detector.detect(images, self.augment)
            found += cells if len(tiles) == 1 else [replace(one, masks=one.masks.half()) for one in cells]
            if progress is not None:
                progress(len(found), len(tiles))
        return found

    def _normalised_as_a_whole(self, picture: Picture) -> Detector:
        """The detector for tiles of a picture, by the statistics of the whole of it up to 2 megapixels, of a larger one
        by those of :func:`representative_windows`."""
        height, width = picture.size
        while True:
            whole = height * width <= self.capacity.statistics_pixels
            windows = [Tile(0, 0, height, width)]
            if not whole:
                windows = representative_windows(picture, self.capacity.tile, self.capacity.statistics_pixels)
            try:
                return self.detector.normalised_by([picture.read(w.top, w.left, w.height, w.width) for w in windows])
            except torch.cuda.OutOfMemoryError:
                if len(windows) == 1 and not whole:
                    raise
            self.capacity.use_fewer_statistics(height * width)


def _read_ahead(picture: Picture, tiles: Sequence[Tile], batch_size: int) -> Iterator[list[Tensor]]:
    """The tiles' pixels in batches of one size; the next batch is read while the caller works on one."""

    def read(batch: Sequence[Tile]) -> list[Tensor]:
        return [picture.read(tile.top, tile.left, tile.height, tile.width) for tile in batch]

    runs = (list(run) for _, run in groupby(tiles, key=lambda tile: (tile.height, tile.width)))
    batches = [run[start : start + batch_size] for run in runs for start in range(0, len(run), batch_size)]
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(read, batches[0])
        for index in range(len(batches)):
            images = upcoming.result()
            if index + 1 < len(batches):
                upcoming = pool.submit(read, batches[index + 1])
            yield images


@checked
def load(
    checkpoint: str | Path = pretrained.DEFAULT,
    device: str = "auto",
    precision: Precision = "auto",
    tile: TileSide | None = None,
    overlap: Overlap | None = None,
    batch_size: BatchSize | None = None,
    augment: Augment = "none",
    box_score_threshold: Fraction | None = None,
) -> Predictor:
    """A trained network, ready to predict: a model that comes with the package, or one that ``train.py`` wrote.

    Args:
        checkpoint: the name of a model in :mod:`maskrcnn.pretrained`, or ``best.pt`` or ``last.pt`` of a run folder;
            read without running any code of the file's.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto`` (bf16 autocast on GPUs and CPUs that compute in it, else fp32), ``fp32`` or ``bf16``.
        tile, overlap, batch_size, augment: see :class:`Predictor`; None: chosen for the device.
        box_score_threshold: cells of a lower score are not looked for, which saves the work of their masks; None: 0.05.

    Raises:
        InputError: the file is missing, damaged, or no checkpoint of this project; a tile that cannot be used.
    """
    path = locate(checkpoint)
    contents = load_checkpoint(path)
    percentiles = contents["percentiles"]
    return Predictor(
        build_model(contents, path),
        None if percentiles is None else tuple(percentiles),
        contents["class_names"],
        choose_device(device),
        precision,
        tile,
        overlap,
        batch_size,
        augment,
        box_score_threshold,
        contents.get("diameter"),
        channels=contents.get("channels"),
        category_ids=contents.get("category_ids"),
        resize=contents.get("resize"),
        **_thresholds(contents),
    )


def _thresholds(contents: dict[str, Any]) -> dict[str, Any]:
    """The thresholds that a checkpoint was fitted with, by the names of :class:`Predictor`; ``min_score`` was the
    earlier name of one."""
    fitted = contents.get("thresholds", {})
    return {"score_threshold" if name == "min_score" else name: value for name, value in fitted.items()}
