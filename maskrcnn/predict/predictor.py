"""From a checkpoint to cells: the three-line API."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from maskrcnn import pretrained
from maskrcnn.checkpoint import build_model, load_checkpoint, locate
from maskrcnn.data.picture import Picture, open_pictures, picture_of
from maskrcnn.data.sample import Sample, collate
from maskrcnn.data.transforms import scale_to
from maskrcnn.device import autocast, choose_device
from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.group_norm import statistics_of
from maskrcnn.predict.augment import Augment, detect_in_views
from maskrcnn.predict.diameter import estimate_diameter
from maskrcnn.predict.masks import into_their_boxes
from maskrcnn.predict.tiles import Tile, merge_tiles, tile_picture
from maskrcnn.predict.windows import representative_windows
from maskrcnn.structures import Detections, InstanceLabels

T = TypeVar("T")

OVERLAP = 128
"""Default overlap of tiles in pixels: more than a cell; of small tiles half of them."""

PIXELS_PER_DETECTION = 1024
"""The checkpoint's limit of cells was meant for small pictures: in larger ones there may be one in each 32x32."""

Diameter = float | Literal["auto", "none"]
"""How large cells are taken to be: their median diameter in pixels of the picture (of the circle of equal area); auto:
estimated; none: the picture is predicted at its own scale."""

BYTES_PER_PIXEL = 1500
"""What the network may take for a pixel of its input: an estimate, for the default tile alone."""

SMALLEST_TILE = 256

SCORE_THRESHOLD = 0.5
"""The score from which a cell is to be believed, where none was fitted."""

LOOK = 1 << 21
"""Pixels of a picture in tiles that give GroupNorm its statistics: 1 GB on the way through the pyramid."""


class Predictor:
    """A trained network with the intensity normalisation that it was trained with.

    >>> model = maskrcnn.load("runs/first/best.pt")  # doctest: +SKIP
    >>> cells = model("picture.tif")  # doctest: +SKIP
    >>> len(cells), cells.boxes, cells.to_labels()  # doctest: +SKIP

    Attributes:
        tile: pictures with a side above it are predicted in tiles of this many pixels a side.
        overlap: pixels that neighbouring tiles share; cells that are larger may be cut.
        batch_size: tiles that go through the network together.
        augment: views of each tile that are averaged (:mod:`maskrcnn.predict.augment`).
        pixels_per_detection: the limit of cells is a tile's area divided by it, where the checkpoint's is lower.
        diameter: the median diameter of cells, in pixels, that the network was trained for: pictures are brought to
            that scale, and tiles and overlap are pixels there. None: it was trained at the pictures' own scale.
        resize: the longer side, in pixels, to which each picture is brought, as in training; None: they are not.
        score_threshold: the score from which a cell is to be believed, one for each class.
        category_ids: the ids of classes 1..K in the COCO file that the network was trained on, else 1..K.
        mask_threshold: probability above which a point belongs to a cell.
    """

    def __init__(
        self,
        model: MaskRCNN,
        percentiles: tuple[float, float] | None,
        class_names: Sequence[str],
        device: torch.device,
        precision: str = "auto",
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        augment: Augment = "none",
        box_score_threshold: float | None = None,
        diameter: float | None = None,
        score_threshold: float | Sequence[float] = SCORE_THRESHOLD,
        mask_threshold: float = 0.5,
        category_ids: Sequence[int] | None = None,
        resize: int | None = None,
    ) -> None:
        self.model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        if box_score_threshold is not None:
            self.model.box_head.score_threshold = box_score_threshold
        self.percentiles = percentiles
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids or range(1, len(self.class_names) + 1))
        if len(self.category_ids) != len(self.class_names):
            count = len(self.class_names)
            raise InputError(f"category_ids has {len(self.category_ids)} entries; expected {count}, one per class")
        self.device = device
        self.precision = precision
        self.tile = default_tile(device) if tile is None else tile
        self.overlap = min(OVERLAP, self.tile // 2) if overlap is None else overlap
        self.batch_size = (1 if device.type == "cpu" else 4) if batch_size is None else batch_size
        self.augment: Augment = augment
        self.diameter, self.resize = diameter, resize
        scores = (
            [score_threshold] * len(self.class_names) if isinstance(score_threshold, float | int) else score_threshold
        )
        self.score_threshold = tuple(map(float, scores))
        if len(self.score_threshold) != len(self.class_names):
            count = len(self.class_names)
            raise InputError(
                f"score_threshold has {len(self.score_threshold)} entries; expected {count}, one per class"
            )
        self.mask_threshold = mask_threshold
        self.pixels_per_detection = PIXELS_PER_DETECTION
        self._look = LOOK
        if self.tile < 32 or not 0 <= self.overlap < self.tile or self.batch_size < 1:
            raise InputError(
                f"--tile {self.tile}, --overlap {self.overlap}, --batch-size {self.batch_size}: expected a tile of at "
                "least 32 pixels, an overlap below it and a batch of at least 1"
            )

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
            return picture_of(image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image), self.percentiles)
        first, *others = open_pictures(image, self.percentiles)
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
        def detect(images: Sequence[Tensor]) -> list[Detections]:
            limit = images[0].shape[0] * images[0].shape[1] // self.pixels_per_detection
            try:
                parts = _batches(images, self.batch_size)
                return [one for part in parts for one in self._forward(part, limit, masks=False)]
            except torch.cuda.OutOfMemoryError:
                if self.batch_size == 1 or len(images) == 1:
                    raise InputError(
                        "out of memory while looking for the size of cells; give --diameter, or choose --device cpu"
                    ) from None
            self.batch_size = min(self.batch_size, -(-len(images) // 2))
            _say_once(f"out of memory: going on with batches of {self.batch_size}")
            return detect(images)

        return estimate_diameter(picture, detect, canonical)

    def _predict(self, picture: Picture, progress: Callable[[int, int], object] | None) -> Detections:
        """The cells of a picture that is at the network's scale already."""
        while True:
            tiles = tile_picture(picture.size, self.tile, self.overlap)
            try:
                found = self._detect_tiles(picture, tiles, progress)
                break
            except torch.cuda.OutOfMemoryError:
                self._use_smaller_tiles()
        if len(tiles) == 1:
            return found[0]
        cells, cut = merge_tiles(tiles, found, picture.size)
        if cut:
            print(
                f"warning: {picture.name}: {cut} cells reach across the overlap of tiles and may be cut; a larger "
                f"--overlap (now {self.overlap}) shows them whole",
                file=sys.stderr,
            )
        return cells

    def _detect_tiles(
        self, picture: Picture, tiles: Sequence[Tile], progress: Callable[[int, int], object] | None
    ) -> list[Detections]:
        found: list[Detections] = []
        with nullcontext() if len(tiles) == 1 else self._normalised_as_a_whole(picture):
            for images in _read_ahead(picture, tiles, self.batch_size):
                cells = self._detect(images)
                found += cells if len(tiles) == 1 else [replace(one, masks=one.masks.half()) for one in cells]
                if progress is not None:
                    progress(len(found), len(tiles))
        return found

    def _normalised_as_a_whole(self, picture: Picture) -> AbstractContextManager[None]:
        """Inside the block, GroupNorm takes a tile for a part of the picture: else the noise of an empty tile would be
        stretched until it looks like cells.

        Means and variances are those of the whole picture up to 2 megapixels, of a larger one those of
        :func:`representative_windows`.
        """
        height, width = picture.size

        @torch.inference_mode()
        def look() -> None:
            while True:
                whole = height * width <= self._look
                windows = (
                    [Tile(0, 0, height, width)] if whole else representative_windows(picture, self.tile, self._look)
                )
                try:
                    images, sizes = self._batch([picture.read(w.top, w.left, w.height, w.width) for w in windows])
                    with autocast(self.precision, self.device):
                        self.model.features(images, sizes)
                    return
                except torch.cuda.OutOfMemoryError:
                    if len(windows) == 1 and not whole:
                        raise
                self._look = min(self._look, height * width) // 2
                _say_once("out of memory: fewer parts of large pictures give their statistics")

        return statistics_of(self.model, look)

    def _detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Cells of pictures uint8 [H, W, 3] of one size; in smaller batches from when the GPU's memory is too small."""
        try:
            limit = images[0].shape[0] * images[0].shape[1] // self.pixels_per_detection
            return detect_in_views(partial(self._forward, limit=limit), images, self.augment)
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
        self.batch_size = min(self.batch_size, -(-len(images) // 2))
        _say_once(f"out of memory: going on with batches of {self.batch_size}")
        return [one for part in _batches(images, self.batch_size) for one in self._detect(part)]

    def _use_smaller_tiles(self) -> None:
        if self.tile <= SMALLEST_TILE:
            raise InputError(
                f"out of memory with tiles of {self.tile} pixels, one at a time; close other programs on the GPU, or "
                "choose --device cpu"
            ) from None
        self.tile = max(SMALLEST_TILE, self.tile // 2)
        self.overlap = min(self.overlap, self.tile // 2)
        _say_once(f"out of memory: going on with tiles of {self.tile} pixels")

    @torch.inference_mode()
    def _forward(self, images: Sequence[Tensor], limit: int, masks: bool = True) -> list[Detections]:
        """Cells of pictures of one size, with or without masks; at least ``limit`` may be found in each."""
        with autocast(self.precision, self.device), self.model.at_least_detections(limit):
            detections = self.model(*self._batch(images), masks=masks)
        if masks and not self.model.aligned:
            detections = [replace(one, masks=into_their_boxes(one.masks, one.boxes)) for one in detections]
        return [replace(one, mask_threshold=self.mask_threshold).to("cpu") for one in detections]

    def _batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """What the network takes: the images in one tensor on the device, and their sizes."""
        samples = [Sample(image, InstanceLabels.empty(*image.shape[:2]), "image", 0) for image in images]
        batch = collate(samples).to(self.device)
        return batch.images.contiguous(memory_format=torch.channels_last), batch.sizes


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _read_ahead(picture: Picture, tiles: Sequence[Tile], batch_size: int) -> Iterator[list[Tensor]]:
    """The tiles' pixels in batches of one size; the next batch is read while the caller works on one."""

    def read(batch: Sequence[Tile]) -> list[Tensor]:
        return [picture.read(tile.top, tile.left, tile.height, tile.width) for tile in batch]

    runs = (list(run) for _, run in groupby(tiles, key=lambda tile: (tile.height, tile.width)))
    batches = [batch for run in runs for batch in _batches(run, batch_size)]
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(read, batches[0])
        for index in range(len(batches)):
            images = upcoming.result()
            if index + 1 < len(batches):
                upcoming = pool.submit(read, batches[index + 1])
            yield images


def default_tile(device: torch.device) -> int:
    """The side of the largest tile, 512 to 2048 pixels, that a quarter of the device's memory has room for.

    On a CPU 1024 at most: larger ones do not go faster.
    """
    if device.type == "cuda":
        memory, largest = torch.cuda.get_device_properties(device).total_memory, 2048
    else:
        memory, largest = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1024
    fitting = [side for side in (512, 1024, 2048) if side <= largest and side**2 * BYTES_PER_PIXEL <= memory / 4]
    return max(fitting, default=512)


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        print(f"warning: {message}", file=sys.stderr)


def load(
    checkpoint: str | Path = pretrained.DEFAULT,
    device: str = "auto",
    precision: str = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    augment: Augment = "none",
    box_score_threshold: float | None = None,
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
        category_ids=contents.get("category_ids"),
        resize=contents.get("resize"),
        **_thresholds(contents),
    )


def _thresholds(contents: dict[str, Any]) -> dict[str, Any]:
    """The thresholds that a checkpoint was fitted with, by the names of :class:`Predictor`; ``min_score`` was the
    earlier name of one."""
    fitted = contents.get("thresholds", {})
    return {"score_threshold" if name == "min_score" else name: value for name, value in fitted.items()}
