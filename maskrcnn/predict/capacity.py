"""How much of a picture goes through the network at once, limited by the device's memory."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass

import torch

from maskrcnn.errors import InputError

BYTES_PER_PIXEL = 1500
"""Estimate of the network's memory per input pixel, for the default tile only."""

MIN_TILE = 256

STATISTICS_PIXELS = 1 << 21
"""Maximum number of pixels for GroupNorm's statistics of a tiled picture; they take 1 GB in the pyramid."""


@dataclass
class Capacity:
    """How much goes through the network at once; permanently reduced when a GPU runs out of memory.

    Attributes:
        tile: maximum side of a tile in pixels.
        overlap: overlap of neighbouring tiles in pixels.
        batch_size: images per batch.
        statistics_pixels: see :data:`STATISTICS_PIXELS`.
    """

    tile: int
    overlap: int
    batch_size: int
    statistics_pixels: int = STATISTICS_PIXELS

    def use_smaller_batches(self, images: int) -> None:
        """Halve the batch size after ``images`` images did not fit."""
        self.batch_size = min(self.batch_size, -(-images // 2))
        _warn_once(f"out of memory: continuing with batches of {self.batch_size}")

    def use_smaller_tiles(self) -> None:
        """Halve the side of the tiles; raises InputError if they are at :data:`MIN_TILE` already."""
        if self.tile <= MIN_TILE:
            raise InputError(
                f"out of memory with tiles of {self.tile} pixels, one at a time; close other programs on the GPU, or "
                "choose --device cpu"
            )
        tile = max(MIN_TILE, self.tile // 2)
        self.overlap = min(self.overlap, tile // 2)
        self.tile = tile
        _warn_once(f"out of memory: continuing with tiles of {tile} pixels")

    def use_fewer_statistics(self, pixels: int) -> None:
        """Halve the pixels for GroupNorm's statistics after ``pixels`` pixels did not fit."""
        self.statistics_pixels = min(self.statistics_pixels, pixels) // 2
        _warn_once("out of memory: normalization statistics are computed from fewer parts of large pictures")


def default_tile(device: torch.device) -> int:
    """The largest tile side, 512 to 2048 pixels, that fits in a quarter of the device's memory.

    On a CPU at most 1024: larger tiles are not faster.
    """
    if device.type == "cuda":
        memory, largest = torch.cuda.get_device_properties(device).total_memory, 2048
    else:
        memory, largest = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 1024
    fitting = [side for side in (512, 1024, 2048) if side <= largest and side**2 * BYTES_PER_PIXEL <= memory / 4]
    return max(fitting, default=512)


@functools.cache
def _warn_once(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
