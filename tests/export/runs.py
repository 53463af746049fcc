"""Inference runs on small pictures, for the tests of what they leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import ROOT


def small_pictures(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("b.png", "a.jpg"):
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(folder / name)


ALL: tuple[Any, ...] = ("coco", "labels", "class-labels", "geojson", "rois", "csv", "overlay")


def one_picture(path: Path, seed: int, height: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, 80), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (out / "cells").iterdir()}


def command(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "infer.py", *map(str, options), "--device", "cpu"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
