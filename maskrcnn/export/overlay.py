"""Draws detections on the picture: outlines and a light fill in the colour of the class, and a legend with counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries
from torch import Tensor

from maskrcnn.files import printable
from maskrcnn.report.outlines import COLORS
from maskrcnn.structures import Detections

LEGEND_HEIGHT = 22


def draw_overlay(
    image: Tensor | npt.NDArray[np.uint8],
    detections: Detections,
    class_names: Sequence[str],
    score_threshold: float | Sequence[float] = 0.5,
    shortest_side: int = 480,
    longest_side: int = 1600,
) -> Image.Image:
    """Draw the outlines of all detections with a score of at least ``score_threshold`` on the picture.

    Args:
        image: the picture, uint8 [H, W, 3], also reduced to any size.
        detections: the detections of the whole picture.
        class_names: names of classes 1..K.
        score_threshold: minimum score of a cell; one for all classes or one per class.
        shortest_side, longest_side: small pictures are enlarged so that the shorter side has about ``shortest_side``
            pixels, large ones reduced so that the longer one has ``longest_side``. Outlines are drawn at the new size.
    """
    height, width = detections.size
    scale = min(max(1.0, shortest_side / min(height, width)), longest_side / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    detections = detections.filter(score_threshold).to("cpu").resized((height, width))
    pixels = image.cpu().numpy() if isinstance(image, Tensor) else image
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.asarray(picture).astype(np.float32)
    cells = detections.to_labels().numpy()
    palette = np.array([COLORS[(int(label) - 1) % len(COLORS)] for label in detections.labels] or [(0, 0, 0)])
    colors = palette[np.maximum(cells, 1) - 1]
    fill, outline = cells > 0, find_boundaries(cells, mode="inner")
    canvas[fill] = 0.85 * canvas[fill] + 0.15 * colors[fill]
    canvas[outline] = colors[outline]
    return _with_legend(canvas.round().astype(np.uint8), detections.labels, class_names, score_threshold)


def _with_legend(
    canvas: np.ndarray, labels: Tensor, class_names: Sequence[str], score_threshold: float | Sequence[float]
) -> Image.Image:
    height, width = canvas.shape[:2]
    counts = torch.bincount(labels, minlength=len(class_names) + 1).tolist()
    entries = [(f"{printable(name)}: {counts[i + 1]}", COLORS[i % len(COLORS)]) for i, name in enumerate(class_names)]
    result = Image.new("RGB", (width, height + LEGEND_HEIGHT), (32, 32, 32))
    result.paste(Image.fromarray(canvas), (0, 0))
    draw, font = ImageDraw.Draw(result), ImageFont.load_default(size=13)
    scores = [score_threshold] if isinstance(score_threshold, float | int) else score_threshold
    lowest = " to ".join(f"{score:g}" for score in sorted({min(scores), max(scores)}))
    x = 6.0
    for text, color in [*entries, (f"score >= {lowest}", (220, 220, 220))]:
        draw.text((x, height + 3), text, fill=color, font=font)
        x += draw.textlength(text, font=font) + 16
    return result
