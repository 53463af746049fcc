"""The report's scores: those of ``maskrcnn evaluate``, at a cost that grows with the cells."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn.engine.evaluate import EvaluateConfig, evaluate_checkpoint
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.report.write import ReportPicture, write_report


def _report(page: Path) -> dict[str, Any]:
    (text,) = re.findall(r'id="report-data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(text)


def test_the_report_says_what_evaluate_says(tiny_run: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    train, out = tmp_path / "train", tmp_path / "out"
    for folder in sorted((tiny_dataset / "train").iterdir())[:3]:
        shutil.copytree(folder, train / folder.name)
    alike: dict[str, Any] = {"checkpoint": tiny_run / "best.pt", "diameter": "none", "device": "cpu"}
    scores = evaluate_checkpoint(EvaluateConfig(**alike, val=(train,)))
    infer(InferConfig(**alike, images=(train,), truth=train, out=out, format=(), report=True))
    report = _report(out / "report.html")["scores"]
    assert report["pictures"] == 3
    for suffix, shown in [("", report), *((f"/class{k}", of) for k, of in enumerate(report["classes"], start=1))]:
        for key, name in (("ap", "mask/AP@1000"), ("ap50", "mask/AP50@1000"), ("value", "dense/AP50")):
            value = scores[name + suffix]
            assert shown[key] == (pytest.approx(value, abs=1e-12) if value >= 0 else None), (key, suffix)
    assert report["missed"] > 0


def _discs(count: int, shift: int) -> tuple[list[dict[str, Any]], int]:
    """Cells of one class in a square picture, and its side."""
    columns = int(count**0.5) + 1
    side = 16 * columns + 8
    y, x = np.mgrid[:12, :12] - 5.5
    cells = []
    for index in range(count):
        mask = np.zeros((side, side), np.uint8, order="F")
        top, left = 16 * (index // columns) + 2, 16 * (index % columns) + 2 + shift * (index % 3)
        mask[top : top + 12, left : left + 12] = y**2 + x**2 < 30
        rle = coco_mask.encode(mask)
        cells.append(
            {
                "category_id": 1,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(mask.sum()),
                "score": 1 - index / 9999,
            }
        )
    return cells, side


def test_four_times_the_cells_cost_about_four_times_as_much(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        (truth, side), (found, _) = _discs(count, 0), _discs(count, 1)
        picture = ReportPicture("a", (side, side), found, np.zeros((side, side, 3), np.uint8), truth)
        times = []
        for _ in range(2):
            start = time.process_time()
            write_report(tmp_path / "report.html", [picture], ["cell"])
            times.append(time.process_time() - start)
        assert _report(tmp_path / "report.html")["scores"]["found"] == count
        return min(times)

    assert seconds(2000) < 6 * seconds(500)  # the matching of pycocotools took 14 times as long


def test_each_class_is_counted_at_its_own_threshold(tmp_path: Path) -> None:
    (truth, side), (found, _) = _discs(4, 0), _discs(4, 0)
    for cells in (truth, found):
        cells[2]["category_id"] = cells[3]["category_id"] = 2
    for cell, score in zip(found, (0.3, 0.6, 0.3, 0.6), strict=True):
        cell["score"] = score
    picture = ReportPicture("a", (side, side), found, np.zeros((side, side, 3), np.uint8), truth)
    write_report(tmp_path / "report.html", [picture], ["one", "two"], score_threshold=(0.5, 0.2))
    report = _report(tmp_path / "report.html")
    assert [of["found"] for of in report["scores"]["classes"]] == [1, 2]
    assert [of["scoreThreshold"] for of in report["classes"]] == [0.5, 0.2]
    assert report["scoreThreshold"] == 0.2 * report["scoreUnits"]
