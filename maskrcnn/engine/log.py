"""The log of a run, ``metrics.jsonl``: one line per step and one per validation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from maskrcnn.errors import writing
from maskrcnn.files import to_json, write_text

TOTAL = "loss"


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; every line is a JSON object with its ``step``."""

    def __init__(self, path: Path, resume: tuple[int, int] | None = None) -> None:
        """``resume``: number of steps done, and of epochs done at the last validation; lines of later steps and
        validations are removed first, since a resumed run writes them again."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if resume is not None and path.is_file():
            step, epoch = resume
            done = [row for row in read_metrics(path) if row["step"] <= step]
            self.rows = [row for row in done if TOTAL in row or row["epoch"] <= epoch]
        write_text(path, "".join(to_json(row) + "\n" for row in self.rows))

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with writing(self.path), open(self.path, "a") as file:
            file.write(to_json(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ``metrics.jsonl``, without an incomplete last line.

    null stands for an infinite or NaN number, and is read as NaN.
    """
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append({name: math.nan if value is None else value for name, value in json.loads(line).items()})
        except json.JSONDecodeError:
            break
    return rows
