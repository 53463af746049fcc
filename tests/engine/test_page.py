"""The page of a run, which each validation writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from maskrcnn.engine.log import read_metrics


def test_it_shows_the_curves_and_the_validation_pictures(tiny_run: Path) -> None:
    page = (tiny_run / "training.html").read_text()
    assert 'class="curves"' in page
    last = [row for row in read_metrics(tiny_run / "metrics.jsonl") if "mask/AP@1000" in row][-1]
    assert f"{tiny_run.name}, epoch {last['epoch']}" in page
    assert f"2 validation pictures, step {last['step']}: mask AP {last['mask/AP@1000']:.3f}" in page
    cards = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script></figure>', page)]
    assert len(cards) == 2
    assert all(card["truth"]["paths"] for card in cards)
    values = [card["score"]["value"] for card in cards]
    assert values == sorted(values)
