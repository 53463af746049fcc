"""The log of a run, ``metrics.jsonl``: one line per step and one per validation, also for TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskrcnn.errors import writing
from maskrcnn.files import to_json, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TOTAL = "loss"
TENSORBOARD = "tensorboard"


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; every line is a JSON object with its ``step``.

    Where TensorBoard is installed, the numbers also go to its files in ``tensorboard/`` beside it.
    """

    def __init__(self, path: Path, resume: tuple[int, int] | None = None) -> None:
        """``resume``: number of steps done, and of epochs done at the last validation; lines of later steps and
        validations are removed first, since a resumed run writes them again."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if resume is not None and path.is_file():
            step, epoch = resume
            done = [row for row in read_metrics(path) if row["step"] <= step]
            self.rows = [row for row in done if TOTAL in row or row["epoch"] <= epoch]
        self._scalars: SummaryWriter | None = None  # opened by the first row: other processes get a copy of the log
        write_text(path, "".join(to_json(row) + "\n" for row in self.rows))

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with writing(self.path), open(self.path, "a") as file:
            file.write(to_json(row) + "\n")
        if importlib.util.find_spec("tensorboard"):
            self._write_scalars(row)

    def _write_scalars(self, row: dict[str, Any]) -> None:
        """Add the numbers of a row to TensorBoard's files, without those of an earlier run from this step on."""
        step, is_validation = row["step"], TOTAL not in row
        with writing(self.path.parent / TENSORBOARD):
            if self._scalars is None:
                from torch.utils.tensorboard import SummaryWriter  # takes seconds

                purged_from = step + 1 if is_validation else step
                self._scalars = SummaryWriter(str(self.path.parent / TENSORBOARD), purge_step=purged_from)
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._scalars.add_scalar(name, value, step)
            self._scalars.flush()  # so that a run that is stopped loses none

    def close(self) -> None:
        """End the thread that writes TensorBoard's files."""
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ``metrics.jsonl``, without incomplete or damaged ones, as a crash may leave them.

    null stands for an infinite or NaN number, and is read as NaN.
    """
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append({name: math.nan if value is None else value for name, value in json.loads(line).items()})
        except json.JSONDecodeError:
            continue
    return rows
