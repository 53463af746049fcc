"""Writes ``report.html``, one page with counts, histograms and a gallery of all pictures with outlines.

The page is self-contained (it includes the files of ``page/``, and pictures as JPEG in base64), so that it can be
mailed and opened offline.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskrcnn.files import atomic_write, printable
from maskrcnn.report.outlines import COLORS, outline_paths
from maskrcnn.report.scores import ReportScores

JPEG_BYTES = 48_000
"""Maximum size of a thumbnail: a hundred pictures of many cells take less than 15 MB, with base64 and outlines."""

LONGEST_SIDE = 1024
GRID = 2
"""Grid units of the outlines per pixel of the thumbnail."""

SCORE_UNITS = 10_000
"""Scores are integers in the page, rounded down, so that comparisons with a threshold are exact."""


Thumbnail = Image.Image | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ReportPicture:
    """A picture of the report.

    Attributes:
        name: name shown in the page.
        size: (H, W) of the picture in pixels.
        results: its COCO results: ``category_id`` (1-based), ``bbox``, ``score`` and ``segmentation`` (RLE with text
            counts in the picture's size).
        thumbnail: the reduced picture, as image or uint8 [h, w, 3], about 1024 pixels on the longest side; or a
            function that makes it, which is called if the picture is shown.
        truth: its COCO annotations (``category_id`` and ``segmentation`` as above, ``area``), or None.
    """

    name: str
    size: tuple[int, int]
    results: Sequence[dict[str, Any]]
    thumbnail: Thumbnail | Callable[[], Thumbnail]
    truth: Sequence[dict[str, Any]] | None = None


def write_report(
    path: Path,
    pictures: Iterable[ReportPicture],
    class_names: Sequence[str],
    title: str = "Cells",
    subtitle: str = "",
    score_threshold: float | Sequence[float] = 0.5,
    figure: Path | None = None,
    most: int | None = None,
) -> None:
    """Write the report.

    Args:
        path: the page's file; its folder is created if it is missing.
        pictures: any iterable; with a generator, one picture is in memory at a time. Pictures with ground truth are
            sorted, the worst first; others keep their order.
        class_names: names of classes 1..K.
        title, subtitle: plain text.
        score_threshold: one for all classes or one per class. Cells below the lowest are hidden until the reader moves
            the slider. Scores are those of ``maskrcnn evaluate`` at these thresholds, and do not change.
        figure: a PNG to show above the summary.
        most: maximum number of pictures in the gallery, the first ones in order; all count in the scores. They are in
            memory together, but for their thumbnails.

    Raises:
        InputError: the file cannot be written.
        ValueError: a class has no name, or a segmentation has another size than its picture.
    """
    lowest = [score_threshold] * len(class_names) if isinstance(score_threshold, float | int) else score_threshold
    scores = ReportScores(len(class_names), lowest)
    cards: list[tuple[float, Callable[[], str]]] = []
    for index, picture in enumerate(pictures):
        _check(picture, len(class_names))
        score = None if picture.truth is None else scores.add(picture.size, picture.truth, picture.results)
        sort_key = math.inf if score is None or score["value"] is None else score["value"]
        card = partial(_card, picture, index, score)
        cards.append((sort_key, card if most is not None else partial(str, card())))
    shown = sorted(cards, key=lambda card: card[0])[:most]
    classes = [
        {
            "name": printable(name),
            "color": "rgb({} {} {})".format(*COLORS[k % len(COLORS)]),
            "scoreThreshold": lowest[k],
        }
        for k, name in enumerate(class_names)
    ]
    data = {
        "classes": classes,
        "scoreThreshold": round(min(lowest) * SCORE_UNITS),
        "scoreUnits": SCORE_UNITS,
        "scores": scores.summary(),
    }
    page = Template(_page("report.html")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        figure="" if figure is None else _figure(figure),
        css=_page("report.css"),
        js=_page("report.js") + _page("charts.js") + _page("viewer.js"),
        data=_json(data),
        cards="\n".join(card() for _, card in shown),
    )
    with atomic_write(path) as beside:
        beside.write_bytes(page.encode("utf-8", "backslashreplace"))


def _page(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text("utf-8")


def _check(picture: ReportPicture, num_classes: int) -> None:
    for cell in (*picture.results, *(picture.truth or ())):
        if not 1 <= cell["category_id"] <= num_classes:
            raise ValueError(f"{picture.name}: class {cell['category_id']}, expected 1 to {num_classes}")
        if tuple(cell["segmentation"]["size"]) != tuple(picture.size):
            size = tuple(cell["segmentation"]["size"])
            raise ValueError(f"{picture.name}: segmentation of size {size}, expected {tuple(picture.size)}")


def _figure(path: Path) -> str:
    with Image.open(path) as picture:
        width, height = picture.size
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="curves" width="{width}" height="{height}" alt="curves" src="data:image/png;base64,{data}">'


def _card(picture: ReportPicture, index: int, score: dict[str, Any] | None) -> str:
    """HTML of a picture in the gallery: its thumbnail, and its cells as JSON."""
    thumbnail = picture.thumbnail() if callable(picture.thumbnail) else picture.thumbnail
    jpeg, (width, height) = _jpeg(thumbnail)
    scale = GRID * min(LONGEST_SIDE, max(_size(thumbnail))) / max(picture.size)
    paths, areas = outline_paths([result["segmentation"] for result in picture.results], scale)
    cells = {
        "classes": [result["category_id"] for result in picture.results],
        "scores": [math.floor(result["score"] * SCORE_UNITS + 1e-9) for result in picture.results],
        "areas": areas,
        "paths": paths,
    }
    truth = None
    if picture.truth is not None:
        paths, _ = outline_paths([cell["segmentation"] for cell in picture.truth], scale)
        truth = {"classes": [cell["category_id"] for cell in picture.truth], "paths": paths}
    data = {
        "index": index,
        "name": printable(picture.name),
        "size": list(picture.size),
        "grid": [max(1, round(side * scale)) for side in picture.size],
        "score": score,
        "cells": cells,
        "truth": truth,
    }
    name = html.escape(printable(picture.name))
    return (
        f'<figure class="card"><button class="open" type="button" aria-label="Open {name}">'
        f'<img loading="lazy" decoding="async" width="{width}" height="{height}" alt="" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"></button>'
        f'<figcaption><span class="name" title="{name}">{name}</span></figcaption>'
        f'<script type="application/json">{_json(data)}</script></figure>'
    )


def _size(thumbnail: Thumbnail) -> tuple[int, int]:
    return thumbnail.size if isinstance(thumbnail, Image.Image) else thumbnail.shape[:2]  # the order does not matter


def _jpeg(thumbnail: Thumbnail) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of at most ``JPEG_BYTES``, by lower quality, then smaller size; and its size (w, h)."""
    picture = thumbnail if isinstance(thumbnail, Image.Image) else Image.fromarray(thumbnail)
    picture = picture.convert("RGB")
    side = LONGEST_SIDE
    while True:
        picture.thumbnail((side, side))
        for quality in (85, 72, 55):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, optimize=True)
            if buffer.tell() <= JPEG_BYTES:
                return buffer.getvalue(), picture.size
        side = max(picture.size) * 4 // 5


def _json(data: dict[str, Any]) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
