"""The Python API for prediction: a predictor is called on a picture and returns detections."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.arrays import picture_of
from maskrcnn.data.picture import Picture, open_pictures
from maskrcnn.data.pixel_size import given_size
from maskrcnn.data.transforms import SCALE_LIMITS, scale_to
from maskrcnn.device import Precision
from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.limits import Limits
from maskrcnn.options import Fraction, Micrometres, Percentile, Range, check_value, checked
from maskrcnn.predict.augment import Augment
from maskrcnn.predict.capacity import Capacity, default_tile
from maskrcnn.predict.detector import Detector
from maskrcnn.predict.diameter import estimate_diameter
from maskrcnn.predict.overlaps import lower_overlapping
from maskrcnn.predict.plan import Plan
from maskrcnn.predict.tiles import Tile, merge_tiles, tile_picture
from maskrcnn.predict.windows import representative_windows
from maskrcnn.structures import Detections

OVERLAP = 128
"""Default overlap of tiles in pixels: more than a cell; half the tile for small tiles."""

STATISTICS_WINDOW = 512
"""Maximum side, in pixels, of the windows that GroupNorm's statistics are taken from."""

TileSide = Annotated[int, Range(32, 65536)]
Overlap = Annotated[int, Range(0, 32768)]
BatchSize = Annotated[int, Range(1, 65536)]
Pixels = Annotated[float, Range(0, 1_000_000, open_low=True)]
Diameter = Pixels | Literal["auto", "none"] | Annotated[str, Micrometres()]
"""Assumed median diameter of the cells in pixels of the picture (of the circle of equal area), or in micrometres, as
``8um``; auto: estimated; none: the picture is predicted at its own scale."""

SCORE_THRESHOLD = 0.5
"""Default score threshold for results, if none was fitted."""

OVERLAP_FACTOR = 0.5
"""Default factor of the scores of detections that overlap better ones, if none was fitted."""


class Predictor:
    """A trained network that detects the cells in pictures of any size, preprocessed as in training.

    >>> model = maskrcnn.load("runs/first/best.pt")  # doctest: +SKIP
    >>> cells = model("picture.tif")  # doctest: +SKIP
    >>> len(cells), cells.boxes, cells.to_labels()  # doctest: +SKIP

    Attributes:
        percentiles: range of intensities that is stretched, see :class:`maskrcnn.data.picture.Picture`.
        class_names: names of classes 1..K.
        detector: the network with its device, precision and limits.
        capacity: pictures with a side above ``capacity.tile`` pixels are predicted in tiles of that side, which overlap
            by ``capacity.overlap`` pixels (larger cells may be cut), ``capacity.batch_size`` of them at a time.
        augment: test-time augmentation of each tile (:mod:`maskrcnn.predict.augment`).
        diameter: the median cell diameter, in pixels, that the network was trained for: pictures are rescaled
            accordingly, and tiles and overlap are in rescaled pixels. None: it was trained at the pictures' own scale.
        overlap_factor: factor of the scores of detections that overlap better ones
            (:func:`maskrcnn.predict.overlaps.lower_overlapping`).
        resize: longer side, in pixels, to which each picture is resized, as in training; None: not resized.
        score_threshold: recommended minimum score of each class.
        channels: the picture's channels to use, as in training; None: grey or RGB.
        category_ids: the ids of classes 1..K in the COCO file that the network was trained on, else 1..K.

    One predictor may be called from several threads at once: calls do not change its state, except ``capacity`` when
    memory runs out.
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
        diameter: Pixels | None = None,
        score_threshold: Fraction | Sequence[Fraction] = SCORE_THRESHOLD,
        mask_threshold: Fraction = 0.5,
        channels: Sequence[Annotated[int, Range(0, 65535)]] | None = None,
        category_ids: Sequence[int] | None = None,
        resize: Annotated[int, Range(32, 16384, multiple_of=32)] | None = None,
        overlap_factor: Fraction = OVERLAP_FACTOR,
    ) -> None:
        self.percentiles, self.channels = percentiles, None if channels is None else tuple(channels)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids or range(1, len(self.class_names) + 1))
        if len(self.category_ids) != len(class_names):
            count = len(self.category_ids)
            raise InputError(f"category_ids has {count} entries; expected {len(class_names)}, one per class")
        self.augment = augment
        self.diameter, self.resize, self.overlap_factor = diameter, resize, overlap_factor
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
        """A predictor with other limits that shares the network."""
        predictor = copy.copy(self)
        predictor.detector = replace(self.detector, limits=limits)
        return predictor

    def __call__(
        self,
        image: str | Path | np.ndarray | Tensor,
        diameter: Diameter | None = None,
        pixel_size: float | None = None,
    ) -> Detections:
        """Detect the cells in one picture of any size.

        Args:
            image: a file (:func:`maskrcnn.open_pictures`), or an array [H, W], [H, W, 3] or [H, W, 4] of any integer or
                float type.
            diameter: see :meth:`predict`.
            pixel_size: side of the pixels in micrometres, for a diameter in micrometres; None: as the file says.

        Returns:
            Detections on the CPU, highest score first, in pixels of the picture, including those with low scores;
            ``cells.filter(predictor.score_threshold)`` removes these.

        Raises:
            InputError: the file or array is not a supported picture, or a stack of several.
        """
        return self.predict(self._open(image, pixel_size), diameter=diameter)

    def read(self, image: str | Path | np.ndarray | Tensor) -> Tensor:
        """Read a picture at its own scale as uint8 [H, W, 3], with intensities stretched as in training."""
        picture = self._open(image)
        return picture.read(0, 0, *picture.size)

    def _open(self, image: str | Path | np.ndarray | Tensor, pixel_size: float | None = None) -> Picture:
        if not isinstance(image, str | Path):
            picture = picture_of(image, self.percentiles, channels=self.channels)
            picture.pixel_size = given_size(pixel_size)
            return picture
        first, *others = open_pictures(image, self.percentiles, channels=self.channels, pixel_size=pixel_size)
        if others:
            raise InputError(
                f"{image}: {1 + len(others)} pages; use Predictor.predict on each picture of open_pictures"
            )
        return first

    def predict(
        self,
        picture: Picture,
        progress: Callable[[int, int], object] | None = None,
        diameter: Diameter | None = None,
    ) -> Detections:
        """Detect the cells in a picture, which is read tile by tile.

        Args:
            picture: from :func:`maskrcnn.data.picture.open_pictures`, with this predictor's ``percentiles``.
            progress: called after each batch with the number of tiles done and of all tiles.
            diameter: median cell diameter in pixels of the picture, or in micrometres (``8um``) by its pixel size, or
                ``none`` to predict it at its own scale. Default: ``auto`` (estimated) if the network was trained for
                one cell diameter, else ``none``.

        Returns:
            Detections on the CPU, highest score first, in pixels of the picture, with the assumed ``diameter``; if the
            picture was tiled, masks are in half precision.

        Raises:
            InputError: the diameter is not above 0, or given for a network that was trained at the pictures' own
                scale, or in micrometres for a picture without a pixel size that can be; or the file is damaged.
        """
        return self.carry_out(picture, self.plan(picture, diameter), progress)

    def carry_out(
        self, picture: Picture, plan: Plan, progress: Callable[[int, int], object] | None = None
    ) -> Detections:
        """:meth:`predict` a picture that was planned, with smaller tiles where they do not fit in the memory."""
        while True:
            try:
                found = self.detect(picture, plan, plan.batches, progress)
                break
            except torch.cuda.OutOfMemoryError:
                pass
            plan = self.with_smaller_tiles(picture, plan)  # outside of except: the exception keeps tensors alive
        return self.merge(picture, plan, found)

    def plan(self, picture: Picture, diameter: Diameter | None = None) -> Plan:
        """The first of the three parts of :meth:`predict`, whose arguments and errors it has: what :meth:`detect` needs
        to know for any of the tiles, also in another process."""
        size = self.find_diameter(picture, diameter)
        factor = 1.0 if size is None or self.diameter is None else scale_to(self.diameter, size)
        if size is not None and self.diameter is not None and diameter not in (None, "auto"):
            self._warn_about_limits(picture, size, factor, self.diameter)
        if self.resize is not None:
            factor = self.resize / max(picture.size)
        return self._plan(picture, size, factor)

    @staticmethod
    def _warn_about_limits(picture: Picture, diameter: float, factor: float, canonical: float) -> None:
        """Warn if cells of the diameter that a user gave cannot be brought to the canonical one."""
        if not math.isclose(diameter * factor, canonical):
            low, high = (canonical / limit for limit in reversed(SCALE_LIMITS))
            print(
                f"warning: {picture.name}: the network takes cells of {low:g} to {high:g} pixels, by rescaling the "
                f"picture; those of {diameter:g} pixels it sees as {diameter * factor:g}, not {canonical:g}",
                file=sys.stderr,
            )

    def with_smaller_tiles(self, picture: Picture, plan: Plan) -> Plan:
        """The plan with smaller tiles, after :meth:`detect` ran out of memory; raises InputError if they are small."""
        self.capacity.use_smaller_tiles()
        return self._plan(picture, plan.diameter, plan.factor)

    def _plan(self, picture: Picture, diameter: float | None, factor: float) -> Plan:
        scaled = picture.rescaled(factor)
        while True:
            tiles = tile_picture(scaled.size, self.capacity.tile, self.capacity.overlap)
            try:
                statistics = None if len(tiles) == 1 else self._statistics(scaled).cpu()
                break
            except torch.cuda.OutOfMemoryError:
                pass
            self.capacity.use_smaller_tiles()
        overlap, batch_size = self.capacity.overlap, self.capacity.batch_size
        return Plan(diameter, factor, tuple(tiles), overlap, batch_size, statistics, picture.intensities)

    def detect(
        self,
        picture: Picture,
        plan: Plan,
        batches: Sequence[Sequence[int]],
        progress: Callable[[int, int], object] | None = None,
    ) -> list[Detections]:
        """The second part of :meth:`predict`: detect the cells in some of the picture's tiles.

        Args:
            picture: the picture.
            plan: from :meth:`plan`, of this process or another one with the same network.
            batches: some of ``plan.batches``.
            progress: called after each batch with the number of tiles done and of all tiles in ``batches``.

        Returns:
            The detections of each tile in ``batches``, in pixels of the tile.

        Raises:
            torch.cuda.OutOfMemoryError: a single tile is too large.
        """
        if plan.intensities is not None:
            picture.intensities = plan.intensities
        scaled, one = picture.rescaled(plan.factor), len(plan.tiles) == 1
        detector = self.detector if plan.statistics is None else self.detector.with_statistics(plan.statistics)
        found: list[Detections] = []
        for images in _prefetch(scaled, [[plan.tiles[index] for index in batch] for batch in batches]):
            detections = detector.detect(images, self.augment)
            found += detections if one else [replace(cells, masks=cells.masks.half()) for cells in detections]
            if progress is not None:
                progress(len(found), sum(map(len, batches)))
        return found

    def merge(self, picture: Picture, plan: Plan, found: Sequence[Detections]) -> Detections:
        """The last part of :meth:`predict`: the cells of the picture from those of all its tiles, in their order."""
        cells = found[0]
        if len(plan.tiles) > 1:
            cells, is_cut = merge_tiles(plan.tiles, found, picture.rescaled(plan.factor).size)
            if cut := len(cells.select(is_cut).filter(self.score_threshold)):
                print(
                    f"warning: {picture.name}: {cut} cells are larger than the overlap of tiles and may be cut; use a "
                    f"larger --overlap (now {plan.overlap})",
                    file=sys.stderr,
                )
        if most := max((len(part) for part in found if self._is_full(part)), default=0):
            print(
                f"warning: {picture.name}: has more cells than {most} per tile, the limit: they are smaller than this "
                "network looks for" + ("; a smaller --diameter enlarges the picture" * (plan.factor < SCALE_LIMITS[1])),
                file=sys.stderr,
            )
        cells = lower_overlapping(cells, self.overlap_factor)
        return replace(cells.resized(picture.size), diameter=plan.diameter)

    def _is_full(self, found: Detections) -> bool:
        """Whether the limit of detections may have cost a tile cells with enough score."""
        limit = self.detector.limits_for(*found.size).detections_per_image
        return len(found) >= limit and float(found.scores[-1]) >= min(self.score_threshold)

    def find_diameter(self, picture: Picture, diameter: Diameter | None = None) -> float | None:
        """The median cell diameter in pixels to assume for a picture; None: predict it at its own scale.

        ``diameter`` and errors as in :meth:`predict`. None also if ``auto`` finds no cell.
        """
        check_value("diameter", diameter, Diameter | None)
        if diameter == "none" or (diameter is None and self.diameter is None):
            return None
        if self.diameter is None:
            raise InputError(
                f"--diameter is {diameter}, but the network was not trained for cells of one size; expected none"
            )
        if diameter is None or diameter == "auto":
            return self._estimate(picture, self.diameter)
        if isinstance(diameter, str):
            return Micrometres.of(diameter) / picture.micrometres()
        return float(diameter)

    def _estimate(self, picture: Picture, canonical: float) -> float | None:
        least = self.detector.model.limits.score_threshold  # doubtful cells count, whatever box_score_threshold is
        detector = replace(self.detector, limits=replace(self.detector.limits, score_threshold=least))
        try:
            return estimate_diameter(picture, partial(detector.detect, masks=False), canonical)
        except torch.cuda.OutOfMemoryError:
            raise InputError(
                "out of memory while estimating the cell diameter; give --diameter, or choose --device cpu"
            ) from None

    def _statistics(self, picture: Picture) -> Tensor:
        """The normalization statistics of the whole picture if it has at most 2 megapixels, of
        :func:`representative_windows` if it is larger."""
        height, width = picture.size
        while True:
            whole = height * width <= self.capacity.statistics_pixels
            windows = [Tile(0, 0, height, width)]
            if not whole:
                side = min(self.capacity.tile, STATISTICS_WINDOW)
                windows = representative_windows(picture, side, self.capacity.statistics_pixels)
            try:
                images = [picture.read(w.top, w.left, w.height, w.width) for w in windows]
                return self.detector.statistics_of(images)
            except torch.cuda.OutOfMemoryError:
                if len(windows) == 1 and not whole:
                    raise
            self.capacity.use_fewer_statistics(height * width)


def _prefetch(picture: Picture, batches: Sequence[Sequence[Tile]]) -> Iterator[list[Tensor]]:
    """Read the tiles in batches; the next batch is read while the caller processes one."""

    def read(batch: Sequence[Tile]) -> list[Tensor]:
        return [picture.read(tile.top, tile.left, tile.height, tile.width) for tile in batch]

    if not batches:
        return
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(read, batches[0])
        for index in range(len(batches)):
            images = upcoming.result()
            if index + 1 < len(batches):
                upcoming = pool.submit(read, batches[index + 1])
            yield images
