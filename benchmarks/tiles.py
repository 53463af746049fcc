"""Prediction in tiles: cells compared to whole pictures, and time and memory by size of the picture.

    python -m benchmarks.tiles --checkpoint runs/NAME/best.pt --images DIR [--tile 256] [--sides 5000 10000 20000]

First every picture of DIR that is larger than a tile is predicted whole and in tiles, and the cells are compared. Then
mosaics of these pictures are written and predicted by infer.py, each in a separate process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
import tyro
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

import maskrcnn
from benchmarks.measure import machine, table
from maskrcnn.data.picture import open_pictures, read_image
from maskrcnn.structures import Detections

SAME = 0.7
BLOCK = 256
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """Compare tiles with whole pictures, and time mosaics."""

    checkpoint: Path
    images: Path
    """Folder of pictures."""
    tile: int = 256
    """Side of the tiles that are compared with the whole picture."""
    overlap: int = 128
    score_threshold: float = 0.5
    """Cells of at least this score are compared."""
    box_score_threshold: float | None = None
    """Of cells in the mosaics, see infer.py."""
    sides: tuple[int, ...] = (5000, 10000, 20000)
    """Sides of the mosaics in pixels."""
    format: tuple[str, ...] = ("coco", "labels", "csv")
    """Formats that the mosaics are written in."""


def matched(whole: Detections, tiled: Detections) -> int:
    """Cells that are the same in both: pairs of one class, one to one, whose masks have an IoU of at least SAME."""
    if not len(whole) or not len(tiled):
        return 0
    iou = coco_mask.iou(whole.to_rle(), tiled.to_rle(), [0] * len(tiled))
    same = (iou >= SAME) & (whole.labels.numpy()[:, None] == tiled.labels.numpy())
    rows, columns = linear_sum_assignment(same, maximize=True)
    return int(same[rows, columns].sum())


def compare(options: Options) -> str:
    """One table row per size of pictures: cells found in whole pictures and in tiles."""
    whole = maskrcnn.load(options.checkpoint, tile=1 << 14)
    tiled = maskrcnn.load(options.checkpoint, tile=options.tile, overlap=options.overlap)
    sums: dict[str, npt.NDArray[np.int64]] = {}
    for path in tqdm(sorted(options.images.glob("*.tif")), desc="whole and tiles"):
        (picture,) = open_pictures(path, whole.percentiles)
        if max(picture.size) <= options.tile:
            continue
        a, b = (model.predict(picture).filter(options.score_threshold) for model in (whole, tiled))
        row = np.array([1, len(a), len(b), matched(a, b)])
        for name in (f"{picture.size[0]}x{picture.size[1]}", "all"):
            sums[name] = sums.get(name, np.zeros(4, np.int64)) + row
    rows = []
    for name, (pictures, a, b, same) in sums.items():
        share = 2 * same / max(1, a + b)
        rows.append(
            [name, str(pictures), str(a), str(b), f"{100 * (b - a) / max(1, a):+.1f} %", f"{100 * share:.1f} %"]
        )
    rows.sort(key=lambda row: row[0] == "all")
    return table(["pictures", "number", "cells whole", "cells in tiles", "difference", f"matched at IoU {SAME}"], rows)


def write_mosaic(path: Path, images: Path, side: int) -> None:
    """A picture of side x side pixels, in blocks of real pictures, written block by block."""
    pictures = []
    for file in sorted(images.glob("*.tif")):
        image = read_image(file).numpy()
        height, width = (max(BLOCK, length) for length in image.shape[:2])
        if (height, width) != image.shape[:2]:
            image = np.asarray(Image.fromarray(image).resize((width, height)))
        pictures.append(image)
    rng = np.random.default_rng(0)

    def blocks() -> Iterator[npt.NDArray[np.uint8]]:
        for _ in range((-(-side // BLOCK)) ** 2):
            picture = pictures[rng.integers(len(pictures))]
            top, left = (rng.integers(length - BLOCK + 1) for length in picture.shape[:2])
            yield np.ascontiguousarray(picture[top : top + BLOCK, left : left + BLOCK])

    shape = (side, side, 3)
    tifffile.imwrite(
        path, blocks(), shape=shape, dtype=np.uint8, tile=(BLOCK, BLOCK), photometric="rgb", compression="zlib"
    )


def time_mosaic(options: Options, side: int, folder: Path) -> list[str]:
    """Predict a mosaic with infer.py: its size, cells, seconds and peak memory."""
    path = folder / f"mosaic-{side}.tif"
    write_mosaic(path, options.images, side)
    out = folder / f"out-{side}"
    command = [sys.executable, str(ROOT / "infer.py"), "--checkpoint", str(options.checkpoint), "--images", str(path)]
    if options.box_score_threshold is not None:
        command += ["--box-score-threshold", str(options.box_score_threshold)]
    start = time.perf_counter()
    # in a child of its own, so that its peak is not that of an earlier one
    script = (
        "import json, resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))\n"
    )
    whole = [sys.executable, "-c", script, *command, "--out", str(out), "--format", *options.format]
    done = subprocess.run(whole, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    cells = len(json.loads((out / "cells" / f"mosaic-{side}.json").read_text())["results"])
    megapixels = side * side / 1e6
    memory = int(done.stdout) * 1024 / 1e9
    return [f"{side}x{side}", str(cells), f"{seconds:.0f}", f"{seconds / megapixels:.2f}", f"{memory:.2f}"]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print(f"{machine()}; python -m benchmarks.tiles {' '.join(sys.argv[1:])}\n")
    print(f"Tiles of {options.tile} pixels, overlap {options.overlap}, score from {options.score_threshold}:\n")
    print(compare(options), "\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            rows.append(time_mosaic(options, side, Path(folder)))
            print(rows[-1], file=sys.stderr)
    names = ["mosaic", "cells", "seconds", "seconds a megapixel", "peak memory of the process, GB"]
    print(f"infer.py --format {' '.join(options.format)}:\n\n{table(names, rows)}")


if __name__ == "__main__":
    main()
