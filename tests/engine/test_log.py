"""metrics.jsonl: strict JSON, whatever the numbers are."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest

from maskrcnn.engine.log import TENSORBOARD, MetricsLog, read_metrics


def test_numbers_without_a_notation_become_null_and_come_back_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1, "epoch": 1, "loss": 1.5, "grad_norm": math.inf})
    log.write({"step": 1, "epoch": 1, "mask/AP": math.nan})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    step, validation = (json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines())
    assert step == {"step": 1, "epoch": 1, "loss": 1.5, "grad_norm": None}
    assert validation["mask/AP"] is None
    resumed = MetricsLog(path, (1, 1))
    assert math.isnan(resumed.rows[0]["grad_norm"])
    assert resumed.rows[0]["loss"] == 1.5
    assert math.isnan(read_metrics(path)[1]["mask/AP"])


def test_logs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They may hold Infinity and NaN."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 1.5, "grad_norm": Infinity}\n')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "epoch": 1, "loss": 1.5, "grad_norm": math.inf}]


def test_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    """A power failure may leave zeros, and a line without its end."""
    row = '{"step": %d, "epoch": 1, "loss": 2.0}'
    lines = [row % 1, "\0\0\0\0", "", row % 3, '{"step": 4']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_tensorboard_shows_what_the_log_holds(tmp_path: Path) -> None:
    """Also after a run that was stopped after step 3 is resumed from step 1."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, before = tmp_path / "metrics.jsonl", set(threading.enumerate())
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.write({"step": step, "epoch": 1, "loss": float(step), "lr": 0.5})
    log.write({"step": 3, "epoch": 1, "mask/AP": 0.25})
    resumed = MetricsLog(path, (1, 0))
    resumed.write({"step": 2, "epoch": 1, "loss": 20.0, "lr": math.nan})
    resumed.write({"step": 2, "epoch": 1, "mask/AP": 0.5})
    for each in (log, resumed):
        each.close()
    assert set(threading.enumerate()) <= before
    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "mask/AP"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]
    assert [(event.step, event.value) for event in events.Scalars("mask/AP")] == [(2, 0.5)]
