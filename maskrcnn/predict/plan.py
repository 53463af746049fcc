"""What is decided about a picture before its tiles are predicted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from torch import Tensor

from maskrcnn.predict.tiles import Tile


@dataclass(frozen=True)
class Plan:
    """How a picture is predicted; small, and can be sent to other processes, which predict some of the tiles.

    Attributes:
        diameter: assumed median cell diameter in pixels of the picture; None: not assumed.
        factor: scale at which the picture is predicted.
        tiles: in pixels of the picture at that scale.
        overlap: of neighbouring tiles, in these pixels.
        batch_size: tiles of one size that go through the network together.
        statistics: of GroupNorm, for all tiles (:meth:`maskrcnn.MaskRCNN.statistics_of`); None for a single tile.
        intensities: the values that become 0 and 255 (:class:`maskrcnn.data.picture.Picture`).
    """

    diameter: float | None
    factor: float
    tiles: tuple[Tile, ...]
    overlap: int
    batch_size: int
    statistics: Tensor | None
    intensities: tuple[float, float] | None

    @cached_property
    def batches(self) -> list[list[int]]:
        """The tiles' numbers in batches of tiles of one size, in order."""
        sizes = groupby(range(len(self.tiles)), key=lambda index: (self.tiles[index].height, self.tiles[index].width))
        runs = [list(run) for _, run in sizes]
        return [run[start : start + self.batch_size] for run in runs for start in range(0, len(run), self.batch_size)]
