"""Checks and decodes a COCO segmentation in any of its three forms: polygons, run lengths, or run lengths as text.

pycocotools draws the polygons, so that the pixels are those of other tools. Its C code does not check its input: NaN or
huge coordinates crash the process, and run lengths that are too short leave pixels uninitialized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskrcnn.structures.rle import run_lengths

MAX_COORDINATE = 1e6
"""Largest coordinate in pixels; points outside the picture are clipped, but must not be farther away."""

MAX_OUTLINE = 5e6
"""Maximum length of a polygon in pixels; pycocotools allocates up to 100 bytes per pixel of length."""


def masks_marked_as_crowds(annotations: Sequence[dict[str, Any]]) -> int:
    """The number of run lengths that are marked as crowds although they are instances; 0 if crowds are crowds.

    COCO has polygons for instances and run lengths for crowds; tools that take this for a rule of the format mark every
    mask as a crowd. CVAT does (it exports with Datumaro, ``coco/exporter.py``), and so may files that hold nothing but
    crowds. A file that other tools wrote is taken as COCO means it once it also has polygons.
    """
    masks = [annotation for annotation in annotations if isinstance(annotation.get("segmentation"), dict)]
    all_marked = all(annotation.get("iscrowd") for annotation in masks)
    extras = [annotation.get("attributes") for annotation in annotations]
    of_cvat = any(isinstance(extra, dict) and "occluded" in extra for extra in extras)
    return len(masks) if all_marked and (of_cvat or len(masks) == len(annotations)) else 0


def why_skipped(annotation: dict[str, Any], skip_crowds: bool = True) -> str | None:
    """The reason for skipping an annotation that other tools skip too; None for one that is used.

    pycocotools ignores crowds; detectron2 also ignores polygons with fewer than three points or an odd number of
    coordinates (``load_coco_json``).
    """
    if skip_crowds and annotation.get("iscrowd"):
        return "crowds"
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return "without a segmentation"
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return None
    if _is_points(segmentation):
        return None
    lengths = [len(polygon) for polygon in segmentation]
    if max(lengths) < 6:
        return "with polygons of fewer than three points"
    return "with an odd number of coordinates" if any(length % 2 for length in lengths) else None


def checked_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Convert a segmentation to run lengths ``{"size": [H, W], "counts": int64 [R]}``, background first.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...] that together form one instance, or an RLE whose counts
            are text or a list of numbers.
        height, width: size of the picture in pixels.

    Raises:
        ValueError: the segmentation is invalid; the message says what was found and what is expected.
    """
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) for polygon in segmentation) or _is_points(segmentation):
            raise ValueError("expected polygons as [[x0, y0, x1, y1, ...], ...]")
        outlines = [
            _checked_outline(polygon) for polygon in segmentation if len(polygon) >= 6
        ]  # shorter ones have no area
        if not outlines:
            raise ValueError("no polygon of three points or more")
        compressed = coco_mask.merge(coco_mask.frPyObjects(outlines, height, width))
        return {"size": [height, width], "counts": run_lengths(compressed["counts"])}
    if not isinstance(segmentation, dict):
        raise ValueError(f"a {type(segmentation).__name__}, expected polygons or an object with size and counts")
    size = segmentation.get("size")
    if size != [height, width]:
        raise ValueError(f"size {str(size)[:60]}, the picture has {[height, width]}")
    counts = _checked_counts(segmentation.get("counts"))
    if counts.size and counts.min() < 0:
        raise ValueError(f"a run of {counts.min()} pixels, expected none below 0")
    if counts.size and counts.max() > height * width:  # so that the sum cannot overflow
        raise ValueError(f"a run of {counts.max()} pixels, the picture has {height * width}")
    if counts.sum() != height * width:
        raise ValueError(f"the runs have {counts.sum()} pixels, the picture has {height * width}")
    return {"size": [height, width], "counts": counts}


def _checked_counts(counts: Any) -> npt.NDArray[np.int64]:
    if isinstance(counts, str):
        if counts.startswith(("b'", 'b"')):
            raise ValueError("counts are str() of bytes; expected bytes.decode()")
        return run_lengths(counts)
    if not isinstance(counts, list):
        raise ValueError(f"counts are a {type(counts).__name__}, expected text or a list of whole numbers")
    if any(type(number) is not int or not -(2**32) < number < 2**32 for number in counts):
        raise ValueError("counts are not whole numbers of 32 bits")
    return np.array(counts, np.int64)


def _checked_outline(polygon: list[Any]) -> list[float]:
    if len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} numbers, expected pairs of x and y")
    for number in polygon:
        # also False for NaN
        if type(number) not in (int, float) or not -MAX_COORDINATE < number < MAX_COORDINATE:
            raise ValueError(f"the coordinate {str(number)[:20]}, expected pixels of the picture")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
    if length > MAX_OUTLINE:
        raise ValueError(f"an outline of {length:.3g} pixels, expected {MAX_OUTLINE:.3g} at most")
    return polygon


def _is_points(polygons: list[list[Any]]) -> bool:
    """Whether the list holds points [x, y] or polygons of such points, instead of polygons [x0, y0, ...]."""
    nested = any(isinstance(polygon[0], list) for polygon in polygons if polygon)
    return nested or (len(polygons) >= 3 and all(len(point) == 2 for point in polygons))
