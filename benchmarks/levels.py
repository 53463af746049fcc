"""Reading of a slide at a quarter of its scale, with its pyramid and from the full size alone.

    python -m benchmarks.levels [--side 40960] [--tiles 9]

A slide is written as Aperio's scanners do: JPEG, three levels of 40x, 10x and 2.5x, a photograph of stained tissue
repeated. It is read in tiles of 1024 pixels at 10x, each way in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import tyro
from skimage.data import immunohistochemistry

from benchmarks.measure import machine, table
from maskrcnn.data.picture import open_pictures

TILE = 1024
DESCRIPTION = "Aperio Image Library\r\n{0}x{0} [0,0 {0}x{0}] JPEG/RGB Q=90|AppMag = 40|MPP = 0.25"


@dataclass(frozen=True)
class Options:
    """Read a slide at a quarter of its scale, with its pyramid and without."""

    side: int = 40960
    """Side of the slide in pixels, a multiple of 1024."""
    tiles: int = 9
    """Number of tiles to read after the first one."""
    slide: Path | None = None
    """The slide to read, in the processes that measure."""
    levels: bool = True
    """Whether these use its pyramid."""


def write_slide(path: Path, side: int) -> None:
    """Write a slide of ``side`` x ``side`` pixels, without ever holding the full size."""
    block = np.tile(immunohistochemistry(), (2, 2, 1))[:TILE, :TILE]
    count = side // TILE
    options = {"compression": "jpeg", "metadata": None, "description": DESCRIPTION.format(side)}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        coded = imagecodecs.jpeg_encode(block, level=90)
        tiff.write(
            (coded for _ in range(count * count)),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(TILE, TILE),
            photometric="ycbcr",
            subsampling=(2, 2),
            **options,
        )
        tiff.write(np.tile(_reduced(block, 64), (count, count, 1)), photometric="rgb", metadata=None)  # thumbnail
        for factor in (4, 16):
            pixels = np.tile(_reduced(block, factor), (count, count, 1))
            tiff.write(pixels, tile=(256, 256), photometric="rgb", **options)


def _reduced(block: np.ndarray, factor: int) -> np.ndarray:
    side = TILE // factor
    return block.reshape(side, factor, side, factor, 3).mean(axis=(1, 3)).astype(np.uint8)


def measure(options: Options) -> None:
    """Print the seconds of the first tile, of each further one and of a reduced copy, and the peak memory in MB."""
    assert options.slide is not None
    (picture,) = open_pictures(options.slide)
    if not options.levels:
        picture.levels = []
    scaled = picture.rescaled(0.25)
    start = time.perf_counter()
    scaled.read(0, 0, TILE, TILE)
    first = time.perf_counter() - start
    across = scaled.size[1] // TILE
    places = [divmod(number, across) for number in range(1, options.tiles + 1)]
    start = time.perf_counter()
    for row, column in places:
        scaled.read(row * TILE, column * TILE, TILE, TILE)
    each = (time.perf_counter() - start) / options.tiles
    start = time.perf_counter()
    picture.reduced(2048)
    reduced = time.perf_counter() - start
    print(first, each, reduced, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def main(options: Options) -> None:
    if options.slide is not None:
        measure(options)
        return
    print(machine())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.svs"
        write_slide(slide, options.side)
        for name, flag in (("levels", "--levels"), ("full size", "--no-levels")):
            command = [sys.executable, "-m", "benchmarks.levels", "--slide", str(slide), flag]
            command += ["--tiles", str(options.tiles)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            first, each, reduced, memory = map(float, out.split())
            rows.append([name, f"{first:.1f} s", f"{each:.3f} s", f"{reduced:.1f} s", f"{memory:.0f} MB"])
    print(table(["read from", "first tile, with the intensities", "each further tile", "overlay", "peak memory"], rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
