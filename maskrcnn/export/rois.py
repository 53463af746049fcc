"""Writes the outlines of cells as a set of regions of interest (ROIs) for ImageJ and Fiji."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi
from skimage.measure import find_contours, points_in_poly

from maskrcnn.export.labels import classes_of
from maskrcnn.files import atomic_write, printable
from maskrcnn.report.outlines import COLORS, simplify
from maskrcnn.structures import Cells, Detections
from maskrcnn.structures.polygons import polygons
from maskrcnn.structures.rle import BATCH, cell_boxes

TOLERANCE = 0.05
"""Maximum deviation in pixels of an outline from the mask's contour: a third of its points are enough for it."""

Ring = npt.NDArray[np.float64]
"""Corners (x, y) of a closed ring, float64 [N, 2]; the last repeats the first."""


def write_rois(
    path: Path,
    detections: Detections | Cells,
    class_names: Sequence[str],
    colors: Sequence[tuple[int, int, int]] = COLORS,
) -> None:
    """Write one ROI per cell into a ZIP archive, which ImageJ's ROI Manager opens.

    The outline is the contour of the mask's probabilities at ``mask_threshold`` (:func:`mask_contours`), with fractions
    of a pixel: it encloses the pixels of the label image but for those whose centres the outline all but touches. A
    cell with holes or several parts is one composite ROI. Cells without probabilities have outlines along the edges of
    their pixels. The name is i + 1 for detection i, its id in the label image
    and the table; the group is the class's number, the stroke colour the class's (ImageJ 1.52t and newer draw a ROI in
    the colour of its group), and the properties hold the class's name and the score. Cells without pixels get no ROI.

    Coordinates are float32: exact to 1/128 pixel in pictures of 100,000 pixels a side. More than 65,535 ROIs make a
    ZIP64 archive, which ImageJ reads.

    Args:
        path: the file; replaced, never appended to, when the new one is complete.
        detections: the cells of one picture, on any device.
        class_names: names of classes 1..K.
        colors: RGB, 0..255, of classes 1, 2, ...; repeated if there are more classes.

    Raises:
        InputError: the file cannot be written.
        ValueError: a detection's class is not in 1..K.
    """
    classes, scores = classes_of(detections, len(class_names)), detections.scores.tolist()
    with atomic_write(path) as beside, ZipFile(beside, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for index, rings in _outlines(detections):
            number = classes[index]
            roi = _roi(rings, str(index + 1))
            roi.group = number
            roi.stroke_color = bytes([255, *colors[(number - 1) % len(colors)]])
            roi.props = f"class: {_in_utf16_units(printable(class_names[number - 1]))}\nscore: {scores[index]:.6g}\n"
            entry = ZipInfo(f"{roi.name}.roi")  # of a fixed date: the same cells make the same file
            entry.compress_type = ZIP_DEFLATED
            archive.writestr(entry, roi.tobytes())


def _outlines(detections: Detections | Cells) -> Iterator[tuple[int, list[Ring]]]:
    """Index and rings of each cell that has pixels."""
    rles = detections.to_rle()
    if isinstance(detections, Cells):
        for first in range(0, len(rles), BATCH):
            for index, parts in enumerate(polygons(rles[first : first + BATCH]), start=first):
                if parts:
                    yield index, [ring.astype(np.float64) for part in parts for ring in part]
        return
    for first in range(0, len(detections), BATCH):
        batch = slice(first, first + BATCH)
        boxes = cell_boxes(rles[batch])
        masks, corners = detections.masks[batch].float().cpu().numpy(), detections.boxes[batch].double().cpu().numpy()
        cells, rings = [], []
        for index in np.flatnonzero(boxes.any(axis=1)).tolist():
            for ring in mask_contours(masks[index], corners[index], detections.size, detections.mask_threshold):
                cells.append(first + index)
                rings.append(ring)
        found: dict[int, list[Ring]] = {}
        for cell, ring in zip(cells, simplify(rings, TOLERANCE), strict=True):
            found.setdefault(cell, []).append(ring)
        yield from found.items()


def mask_contours(
    mask: npt.NDArray[np.float32], box: npt.NDArray[np.float64], size: tuple[int, int], threshold: float
) -> list[Ring]:
    """The contours of a cell's probabilities at a threshold, in pixels of the picture.

    The probability of a point is interpolated as in :func:`maskrcnn.ops.masks_to_rle`: bilinearly between the centres
    of the mask's entries, with zeros around them. Contours are straight between the lines of that grid (marching
    squares; Lorensen and Cline, 1987), on which they are exact.

    Args:
        mask: [M, M], the probabilities.
        box: (x1, y1, x2, y2) of the mask.
        size: (H, W) of the picture, at whose borders contours are cut off.
        threshold: inside, probabilities are above it.

    Returns:
        The outlines (of positive area in x, y) and holes (negative). Those that enclose no pixel's centre, and so are
        not seen in a label image, are left out, but never the largest outline.
    """
    scale, corner = (box[2:] - box[:2]) / len(mask), box[:2]
    padded = np.pad(mask, 1).astype(np.float64)
    rings = []
    for contour in find_contours(padded, threshold, positive_orientation="low"):
        rings.append(
            _inside((contour[:, ::-1] - 0.5) * scale + corner, size)
        )  # padded entry i has its centre at i - 0.5
    areas = [_area(ring) for ring in rings]
    largest = max(areas, default=0)
    return [ring for ring, area in zip(rings, areas, strict=True) if 0 < area == largest or _has_pixels(ring, area)]


def _inside(ring: Ring, size: tuple[int, int]) -> Ring:
    """The part of a ring inside the picture: beyond the borders it goes along them."""
    limits = np.array([size[1], size[0]])
    if (ring >= 0).all() and (ring <= limits).all():
        return ring
    for axis in (0, 1):
        for border in (0.0, float(limits[axis])):
            before, after = ring[:-1, axis] - border, ring[1:, axis] - border
            crossed = np.flatnonzero(before * after < 0)
            share = before[crossed] / (before[crossed] - after[crossed])
            points = ring[crossed] + share[:, None] * (ring[crossed + 1] - ring[crossed])
            ring = np.insert(ring, crossed + 1, points, axis=0)
    return np.clip(ring, 0, limits)


def _has_pixels(ring: Ring, area: float) -> bool:
    """Whether a ring encloses the centre of a pixel, as far as one of less than a pixel's area may not."""
    if abs(area) >= 1:
        return True
    (left, top), (right, bottom) = np.floor(ring.min(axis=0)), np.ceil(ring.max(axis=0))
    centres = np.mgrid[left:right, top:bottom].reshape(2, -1).T + 0.5
    return bool(points_in_poly(centres, ring).any())


def _area(ring: Ring) -> float:
    """The signed area of a ring by the shoelace formula, positive if it turns from x to y."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def _roi(rings: Sequence[Ring], name: str) -> ImagejRoi:
    """A freehand selection, or a composite one of several rings."""
    roi = ImagejRoi.frompoints(rings[0][:-1], name=name)
    roi.options = ROI_OPTIONS.SUB_PIXEL_RESOLUTION
    if len(rings) > 1:
        points = np.concatenate(rings)
        roi.left, roi.top = np.floor(points.min(axis=0)).astype(int).tolist()
        roi.right, roi.bottom = np.ceil(points.max(axis=0)).astype(int).tolist()
        path = [np.append(_path(ring), 4) for ring in rings]  # 4: close the ring
        roi.roitype, roi.n_coordinates = ROI_TYPE.RECT, 0
        roi.integer_coordinates = roi.subpixel_coordinates = None
        roi.options = ROI_OPTIONS.NONE
        roi.multi_coordinates = np.concatenate(path).astype(np.float32)
        roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _path(ring: Ring) -> npt.NDArray[np.float64]:
    """Segments of java.awt.geom.PathIterator: (0, x, y) moves to the first corner, (1, x, y) draws a line to others."""
    kinds = np.arange(len(ring) - 1) > 0
    return np.concatenate([kinds[:, None], ring[:-1]], axis=1).ravel()


def _in_utf16_units(text: str) -> str:
    """``text`` as the file stores it, with its length in units of UTF-16: characters beyond U+FFFF are escaped."""
    return "".join(c if ord(c) < 0x10000 else c.encode("unicode_escape").decode() for c in text)
