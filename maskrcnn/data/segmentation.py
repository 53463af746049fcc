"""One COCO segmentation in any of its three forms (polygons, run lengths, run lengths as text), checked.

pycocotools draws the polygons, so that the pixels are those that other tools have. Its C code trusts what it is given:
coordinates that are NaN or huge end the process, and run lengths that are too short leave pixels uninitialised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from maskrcnn.structures.rle import run_lengths

MAX_COORDINATE = 1e6
"""In pixels, from the picture's corner: points outside the picture are cut off, but none can be this far away."""

MAX_OUTLINE = 5e6
"""Length of a polygon in pixels, for each of which pycocotools takes up to 100 bytes."""


def why_skipped(annotation: dict[str, Any]) -> str | None:
    """Why an annotation is left out, as other tools leave it out; None for one that is to be used.

    pycocotools ignores crowds; detectron2 also ignores polygons with fewer than three points or an odd number of
    coordinates (``load_coco_json``).
    """
    if annotation.get("iscrowd"):
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
    """The segmentation as run lengths, ``{"size": [H, W], "counts": int64 [R]}``, background first.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...], which are one instance together, or an RLE whose counts
            are text or a list of numbers.
        height, width: of the picture in pixels.

    Raises:
        ValueError: it says what was found and what is expected.
    """
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) for polygon in segmentation) or _is_points(segmentation):
            raise ValueError("expected polygons as [[x0, y0, x1, y1, ...], ...]")
        outlines = [_checked_outline(polygon) for polygon in segmentation if len(polygon) >= 6]  # fewer draw nothing
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
        raise ValueError(f"a polygon of {len(polygon)} numbers, expected x and y in turns")
    for number in polygon:
        # NaN fails every comparison
        if type(number) not in (int, float) or not -MAX_COORDINATE < number < MAX_COORDINATE:
            raise ValueError(f"the coordinate {str(number)[:20]}, expected pixels of the picture")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
    if length > MAX_OUTLINE:
        raise ValueError(f"an outline of {length:.3g} pixels, expected {MAX_OUTLINE:.3g} at most")
    return polygon


def _is_points(polygons: list[list[Any]]) -> bool:
    """Whether they are points [x, y], or polygons of such points, where polygons [x0, y0, ...] are expected."""
    nested = any(isinstance(polygon[0], list) for polygon in polygons if polygon)
    return nested or (len(polygons) >= 3 and all(len(point) == 2 for point in polygons))
