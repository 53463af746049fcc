"""Time of `maskrcnn predict` on a folder of pictures, part by part: how much of it is not the network.

    python -m benchmarks.folder --images FOLDER [--device cuda] [--checkpoint nuclei]

The time is that of the thread that runs the network: it waits for reading only if the next window is not ready, and for
writing only if the picture before is not written yet. "start" is a fresh Python process that imports what the command
needs. Processor time is that of all threads of the prediction.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.measure import Stopwatch, machine, seconds, table
from maskrcnn.device import choose_device
from maskrcnn.export import infer as run
from maskrcnn.export.config import InferConfig
from maskrcnn.predict.detector import Detector
from maskrcnn.predict.predictor import Predictor

IMPORT = [sys.executable, "-c", "import maskrcnn.cli, maskrcnn.export.infer"]
PARTS = (
    (Detector, "_forward", "network"),
    (run, "_load", "load the model"),
    (run, "find_jobs", "list the pictures"),
    (run, "begin", "list the pictures"),
    (Predictor, "predict", "read, rescale and merge"),
    (run, "_wait", "wait for the files of a picture"),
    (run, "finish", "combine the results"),
)


@dataclass(frozen=True)
class Options:
    """Time a prediction from files to files."""

    images: tuple[Path, ...]
    """Pictures, or folders of pictures."""
    checkpoint: Path = Path("nuclei")
    device: Literal["cpu", "cuda"] = "cpu"
    most: Annotated[float, tyro.conf.arg(metavar="FRACTION")] = 0.1
    """The share of the time that is not the network, which is the aim."""


def main(options: Options) -> None:
    start = statistics.median(seconds(lambda: subprocess.run(IMPORT, check=True)) for _ in range(3))
    watch = Stopwatch(options.device)
    with tempfile.TemporaryDirectory() as folder, watch.wrapped(PARTS):
        config = InferConfig(
            images=options.images, checkpoint=options.checkpoint, device=options.device, out=Path(folder)
        )
        processor = time.process_time()
        with watch.part("other"):
            outcome = run.infer(config)
        processor = time.process_time() - processor
    spent = {"start": start, **watch.spent}
    total = sum(spent.values())
    rows = [[name, f"{used:.2f} s", f"{used / total:.1%}"] for name, used in sorted(spent.items(), key=lambda i: -i[1])]
    print(f"    {' '.join(['python -m benchmarks.folder', *sys.argv[1:]])}\n")
    print(f"{machine(choose_device(options.device).type)}; {outcome.cells} cells, {len(outcome.failures)} failures\n")
    print(table(["part", "time", "share"], rows))
    rest = 1 - watch.spent["network"] / total
    print(
        f"\n{rest:.1%} of {total:.1f} s is not the network (aim: {options.most:.0%}); {processor:.1f} s of processors"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
