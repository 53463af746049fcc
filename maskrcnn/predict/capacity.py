"""How much of a picture goes through the network at once: what the device's memory has room for."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch

from maskrcnn.errors import InputError

BYTES_PER_PIXEL = 1500
"""What the network may take for a pixel of its input: an estimate, for the default tile alone."""

SMALLEST_TILE = 256

STATISTICS_PIXELS = 1 << 21
"""Pixels of a picture in tiles that give GroupNorm its statistics: 1 GB on the way through the pyramid."""


@dataclass
class Capacity:
    """How much goes through the network at once. It shrinks when a GPU's memory runs out, and stays so.

    Attributes:
        tile: side in pixels of the largest tile.
        overlap: pixels that neighbouring tiles share.
        batch_size: images of one batch.
        statistics_pixels: see :data:`STATISTICS_PIXELS`.
    """

    tile: int
    overlap: int
    batch_size: int
    statistics_pixels: int = STATISTICS_PIXELS

    def use_smaller_batches(self, images: int) -> None:
        """Half of as many as did not fit."""
        self.batch_size = min(self.batch_size, -(-images // 2))
        _say_once(f"out of memory: going on with batches of {self.batch_size}")

    def use_smaller_tiles(self) -> None:
        """Tiles of half the side; raises InputError where they are small already."""
        if self.tile <= SMALLEST_TILE:
            raise InputError(
                f"out of memory with tiles of {self.tile} pixels, one at a time; close other programs on the GPU, or "
                "choose --device cpu"
            )
        tile = max(SMALLEST_TILE, self.tile // 2)
        self.overlap = min(self.overlap, tile // 2)
        self.tile = tile
        _say_once(f"out of memory: going on with tiles of {tile} pixels")

    def use_fewer_statistics(self, pixels: int) -> None:
        """Half of as many pixels as did not fit."""
        self.statistics_pixels = min(self.statistics_pixels, pixels) // 2
        _say_once("out of memory: fewer parts of large pictures give their statistics")


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
