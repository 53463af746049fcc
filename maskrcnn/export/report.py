"""A folder of predicted pictures as one page, ``report.html``: counts, histograms and a gallery with outlines.

The page holds all it needs (the files of ``page/`` are written into it, pictures are JPEG in base64), so it can be
mailed, and opened without a network.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from maskrcnn.evaluation.coco_ap import COCO_MAX_DETECTIONS, coco_metrics
from maskrcnn.evaluation.dense import THRESHOLDS, Counts, count, summarize
from maskrcnn.export.outlines import outline_paths
from maskrcnn.export.overlay import COLORS
from maskrcnn.files import atomic_write
from maskrcnn.structures.rle import label_image, label_planes

JPEG_BYTES = 48_000
"""Size of a thumbnail at most: a hundred pictures full of cells stay below 15 MB, base64 and outlines included."""

LONGEST_SIDE = 1024
GRID = 2
"""Units of the outlines' grid per pixel of the thumbnail."""

SCORE_UNITS = 10_000
"""Scores are whole numbers in the page, rounded down, so that a comparison with a threshold is exact."""


@dataclass(frozen=True)
class ReportPicture:
    """A picture of the report.

    Attributes:
        name: as the page shows it.
        size: (H, W) of the picture in pixels.
        results: its COCO results: ``category_id`` (1-based), ``bbox``, ``score`` and ``segmentation`` (RLE with text
            counts in the picture's own size).
        thumbnail: the picture, reduced; uint8 [h, w, 3] where it is an array. About 1024 pixels on the longest side.
        truth: its COCO annotations (``category_id`` and ``segmentation`` as above); None where they are not known.
    """

    name: str
    size: tuple[int, int]
    results: Sequence[dict[str, Any]]
    thumbnail: Image.Image | npt.NDArray[np.uint8]
    truth: Sequence[dict[str, Any]] | None = None


def write_report(
    path: Path,
    pictures: Iterable[ReportPicture],
    class_names: Sequence[str],
    title: str = "Cells",
    subtitle: str = "",
    score_threshold: float = 0.5,
) -> None:
    """Write the page, beside first and then renamed.

    Args:
        path: the page's file; its folder is made.
        pictures: any iterable; of a generator one picture is held at a time. Where truth is known, the worst pictures
            come first, else they keep their order.
        class_names: names of classes 1..K.
        title, subtitle: plain text.
        score_threshold: cells below are hidden until the reader moves the slider. The scores against the truth are
            computed with this one and stay.

    Raises:
        InputError: the file cannot be written.
        ValueError: a class that has no name, or a segmentation of another size than its picture.
    """
    scores = _Scores(len(class_names), score_threshold)
    cards: list[tuple[float, str]] = []
    for index, picture in enumerate(pictures):
        _check(picture, len(class_names))
        score = None if picture.truth is None else scores.add(picture)
        badness = math.inf if score is None or score["value"] is None else score["value"]
        cards.append((badness, _card(picture, index, score)))
    classes = [
        {"name": name, "color": "rgb({} {} {})".format(*COLORS[k % len(COLORS)])} for k, name in enumerate(class_names)
    ]
    data = {
        "classes": classes,
        "scoreThreshold": round(score_threshold * SCORE_UNITS),
        "scoreUnits": SCORE_UNITS,
        "scores": scores.summary() if scores.images else None,
    }
    page = Template(_page("report.html")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        css=_page("report.css"),
        js=_page("report.js") + _page("charts.js") + _page("viewer.js"),
        data=_json(data),
        cards="\n".join(card for _, card in sorted(cards, key=lambda card: card[0])),
    )
    with atomic_write(path) as beside:
        beside.write_bytes(page.encode("utf-8", "replace"))  # names of files need not be Unicode


def _page(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text("utf-8")


def _check(picture: ReportPicture, num_classes: int) -> None:
    for cell in (*picture.results, *(picture.truth or ())):
        if not 1 <= cell["category_id"] <= num_classes:
            raise ValueError(f"{picture.name}: class {cell['category_id']}, expected 1 to {num_classes}")
        if tuple(cell["segmentation"]["size"]) != tuple(picture.size):
            size = tuple(cell["segmentation"]["size"])
            raise ValueError(f"{picture.name}: segmentation of size {size}, expected {tuple(picture.size)}")


def _card(picture: ReportPicture, index: int, score: dict[str, Any] | None) -> str:
    """The picture's place in the gallery: its thumbnail, and its cells as JSON beside it."""
    jpeg, (width, height) = _jpeg(picture.thumbnail)
    scale = GRID * min(LONGEST_SIDE, max(_size(picture.thumbnail))) / max(picture.size)
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
        "name": picture.name,
        "size": list(picture.size),
        "grid": [max(1, round(side * scale)) for side in picture.size],
        "score": score,
        "cells": cells,
        "truth": truth,
    }
    name = html.escape(picture.name)
    return (
        f'<figure class="card"><button class="open" type="button" aria-label="Open {name}">'
        f'<img loading="lazy" decoding="async" width="{width}" height="{height}" alt="" '
        f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"></button>'
        f'<figcaption><span class="name" title="{name}">{name}</span></figcaption>'
        f'<script type="application/json">{_json(data)}</script></figure>'
    )


def _size(thumbnail: Image.Image | npt.NDArray[np.uint8]) -> tuple[int, int]:
    return thumbnail.size if isinstance(thumbnail, Image.Image) else thumbnail.shape[:2]  # the order does not matter


def _jpeg(thumbnail: Image.Image | npt.NDArray[np.uint8]) -> tuple[bytes, tuple[int, int]]:
    """As good as ``JPEG_BYTES`` allow: coarser first, then smaller. Also the size (w, h)."""
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
    """JSON that may stand inside a script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


@dataclass
class _Scores:
    """Collects what the scores against the truth follow from: run lengths, and counts by picture and class."""

    num_classes: int
    score_threshold: float
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    counts: list[list[Counts]] = field(default_factory=list)  # by picture, by class
    limit: int = COCO_MAX_DETECTIONS

    def add(self, picture: ReportPicture) -> dict[str, Any]:
        """The picture's own TP / (TP + FP + FN) at IoU 0.5, None where there is no cell; a pair is of one class."""
        image_id = len(self.images) + 1
        height, width = picture.size
        self.images.append({"id": image_id, "file_name": picture.name, "height": height, "width": width})
        for cell in picture.truth or ():
            number = len(self.annotations) + 1
            self.annotations.append({"iscrowd": 0, **cell, "id": number, "image_id": image_id})
        self.results.extend({**result, "image_id": image_id} for result in picture.results)
        self.limit = max(self.limit, len(picture.results))
        self.counts.append([self._count(picture, k) for k in range(1, self.num_classes + 1)])
        return _found(self.counts[-1])

    def summary(self) -> dict[str, Any]:
        """Scores over all pictures with truth, overall and by class; None for a class without a true cell."""
        names = range(1, self.num_classes + 1)
        categories = [{"id": k, "name": str(k)} for k in names]
        truth = {"images": self.images, "annotations": self.annotations, "categories": categories}
        coco = coco_metrics(truth, self.results, self.limit)
        suffix = "" if self.limit == COCO_MAX_DETECTIONS else f"@{self.limit}"
        by_class = [
            {
                "ap": _known(coco[f"AP{suffix}/class{k}"]),
                "ap50": _known(coco[f"AP50{suffix}/class{k}"]),
                **_found([picture[k - 1] for picture in self.counts]),
                "value": _known(summarize([picture[k - 1] for picture in self.counts])["AP50"]),
            }
            for k in names
        ]
        return {
            "pictures": len(self.images),
            "scoreThreshold": self.score_threshold,
            "limit": self.limit,
            "ap": _known(coco[f"AP{suffix}"]),
            "ap50": _known(coco[f"AP50{suffix}"]),
            **_found([counts for picture in self.counts for counts in picture]),
            "classes": by_class,
        }

    def _count(self, picture: ReportPicture, category: int) -> Counts:
        """As :func:`maskrcnn.evaluation.evaluate.dense_metrics` counts the cells of a class in a picture."""
        cells = [cell["segmentation"] for cell in picture.truth or () if cell["category_id"] == category]
        found = [r for r in picture.results if r["category_id"] == category and r["score"] >= self.score_threshold]
        if not cells and not found:
            return Counts(0, 0, np.zeros(len(THRESHOLDS), np.int64), 0, 0.0)
        found = sorted(found, key=lambda result: result["score"])  # label_image shows the last one
        labels = label_image([result["segmentation"] for result in found], picture.size)
        return count(label_planes(cells, picture.size), labels)


def _found(counts: Sequence[Counts]) -> dict[str, Any]:
    matched = sum(int(one.matched[THRESHOLDS.index(0.5)]) for one in counts)
    missed = sum(one.num_truth for one in counts) - matched
    wrong = sum(one.num_predicted for one in counts) - matched
    union = matched + missed + wrong
    return {"value": matched / union if union else None, "found": matched, "missed": missed, "wrong": wrong}


def _known(value: float) -> float | None:
    """Without the -1 of classes that have no cell."""
    return value if value >= 0 else None
