"""Seconds and memory to write the outlines of a slide's cells: ``python -m benchmarks.outlines [--cells 500000]``."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from maskrcnn.export.geojson import write_geojson
from maskrcnn.export.rois import write_rois
from maskrcnn.structures import Detections

NAMES = ["a", "b", "c"]
WRITERS: dict[str, Callable[[Path, Detections], None]] = {
    "geojson": lambda path, cells: write_geojson(path, cells, NAMES),
    "rois": lambda path, cells: write_rois(path, cells, NAMES),
}


def slide(count: int, side: int) -> Detections:
    """Cells of 6 to 60 pixels, 24 on average, with irregular outlines, anywhere in a picture of ``side`` pixels."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(64, 28, 28)), (0, 4, 4))
    y, x = np.mgrid[:28, :28] + 0.5
    masks = 1 / (1 + np.exp(np.hypot(y - 14, x - 14) - 12 - 2 * noise / noise.std()))
    sides = rng.normal(24, 6, (count, 2)).clip(6, 60)
    corners = rng.uniform(0, side - 64, (count, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()
    scores, labels = torch.from_numpy(rng.uniform(0.3, 1, count)).float(), torch.from_numpy(rng.integers(1, 4, count))
    return Detections(boxes, scores, labels, torch.from_numpy(masks).half()[rng.integers(0, 64, count)], (side, side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=500_000)
    parser.add_argument("--formats", nargs="+", choices=WRITERS, default=list(WRITERS))
    args = parser.parse_args()
    cells = slide(args.cells, 40_000)
    print(f"| {args.cells} cells | seconds per 100,000 | CPU seconds per 100,000 | bytes per cell | peak memory (GB) |")
    print("| --- | --- | --- | --- | --- |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| nothing written yet | | | | {peak:.1f} |")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.formats:
            path, wall, cpu = Path(folder) / name, time.perf_counter(), time.process_time()
            WRITERS[name](path, cells)
            seconds = [(time.perf_counter() - wall), (time.process_time() - cpu)]
            columns = " | ".join(f"{1e5 * each / args.cells:.1f}" for each in seconds)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"| {name} | {columns} | {path.stat().st_size / args.cells:.0f} | {peak:.1f} |")


if __name__ == "__main__":
    main()
