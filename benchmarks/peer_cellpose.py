"""Cellpose's network with random weights, to measure its time only: part of ``python -m benchmarks.peers``.

Cellpose downloads its weights, which is not possible everywhere and does not affect the time of the network. The steps
after the network (following the flow of each pixel) depend on the weights and are not timed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from cellpose.models import CellposeModel
from cellpose.vit import CPSAM

from benchmarks.peer_process import Answers


def random_model(bfloat16: bool) -> CellposeModel:
    """Cellpose's own class reads weights from a file only."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        CPSAM().save_model(path)
        return CellposeModel(pretrained_model=str(path), use_bfloat16=bfloat16)


def main() -> None:
    answers = Answers()
    precision = sys.argv[1]
    model = random_model(precision == "bf16")

    def predict(image: np.ndarray, diameter: float | None) -> None:
        model.eval(image, diameter=diameter, compute_masks=False)

    answers.serve(predict, parameters=sum(p.numel() for p in model.net.parameters()), precision=precision)


if __name__ == "__main__":
    main()
