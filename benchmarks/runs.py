"""Runs of train.py in separate processes, for studies of many runs: completed ones are kept, stopped ones resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from maskrcnn.engine.log import read_metrics
from maskrcnn.engine.validation import THRESHOLDS


def validations(run: Path) -> list[dict[str, float]]:
    """The scores of a run so far, one row per validation."""
    if not (run / "metrics.jsonl").is_file():
        return []
    return [row for row in read_metrics(run / "metrics.jsonl") if "mask/AP" in row]


def last_scores(run: Path) -> dict[str, float] | None:
    """The validation scores after the last epoch; None if the run is not complete."""
    if not (run / "config.json").is_file() or not (run / THRESHOLDS).is_file():
        return None
    epochs = json.loads((run / "config.json").read_text())["optim_options"]["epochs"]
    done = [row for row in validations(run) if row["epoch"] == epochs]
    return done[-1] if done else None


def finished_run(run: Path, options: Sequence[str], threads: int) -> dict[str, float]:
    """Start a run with ``options`` of train.py, or resume it, and return its last scores.

    Its output goes to ``<run>.log``, its options to ``<run>.options``. Ends the process where train.py fails, or where
    the run was started with other options.
    """
    known, given = Path(f"{run}.options"), "\n".join(options)
    if known.is_file() and known.read_text() != given:
        raise SystemExit(f"error: {run} was started with other options, see {known}; expected another folder as --out")
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(given)
    if (scores := last_scores(run)) is not None:
        return scores
    script = [sys.executable, str(Path(__file__).resolve().parent.parent / "train.py")]
    start = ["--resume", str(run)] if (run / "last.pt").is_file() else ["--out", str(run), *options]
    print(f"{run.name}: {' '.join(start)}", file=sys.stderr, flush=True)
    with open(f"{run}.log", "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([*script, *start], stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode != 0 or (scores := last_scores(run)) is None:
        raise SystemExit(f"error: {run.name} ended with code {done.returncode}; see {run}.log")
    return scores
