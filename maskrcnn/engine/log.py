"""The record of a run: ``metrics.jsonl``, a line a step and a line a validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskrcnn.errors import writing
from maskrcnn.files import atomic_write

TOTAL = "loss"


class MetricsLog:
    """Appends to ``metrics.jsonl``; every line is a JSON object with the ``step`` it belongs to."""

    def __init__(self, path: Path, resume: tuple[int, int] | None = None) -> None:
        """``resume``: the steps that are done, and the epochs that were done at the last validation; lines of later
        steps and validations of later epochs are taken out first, for a resumed run writes them again."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if resume is not None and path.is_file():
            step, epoch = resume
            done = [row for row in read_metrics(path) if row["step"] <= step]
            self.rows = [row for row in done if TOTAL in row or row["epoch"] <= epoch]
        with atomic_write(path) as beside:
            beside.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
