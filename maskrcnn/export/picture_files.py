"""Writes the result files of one picture, in the requested formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from maskrcnn.data.picture import Picture
from maskrcnn.data.stored import Array
from maskrcnn.export.geojson import write_geojson
from maskrcnn.export.jobs import Job
from maskrcnn.export.labels import write_class_labels, write_labels
from maskrcnn.export.overlay import draw_overlay
from maskrcnn.export.rois import write_rois
from maskrcnn.export.run_folder import FILES, file_of, record_of
from maskrcnn.export.table import write_table
from maskrcnn.export.zarr_labels import write_zarr_labels
from maskrcnn.files import atomic_write, encodable, to_json, write_text
from maskrcnn.structures import Cells, Detections

OVERLAY = 1600
"""Longest side of an overlay in pixels."""


def write_cells(
    paths: Mapping[str, Path],
    cells: Cells,
    outlined: Cells | Detections,
    class_names: Sequence[str],
    open_picture: Callable[[], Picture],
    micrometres: float | None = None,
) -> None:
    """Write the files that hold nothing but a picture's cells.

    Args:
        paths: the files by format; those that show the picture are passed over.
        cells: the cells.
        outlined: the same cells for ROIs, whose outlines are finer with probabilities.
        class_names: names of classes 1..K.
        open_picture: the picture, for intensities and lengths in the table; called if there is one.
        micrometres: the side of a pixel, for label images; None: unknown.

    Raises:
        InputError: a file cannot be written, or the picture cannot be read.
    """
    if "labels" in paths:
        write_labels(paths["labels"], cells, micrometres)
    if "class-labels" in paths:
        write_class_labels(paths["class-labels"], cells, len(class_names), micrometres)
    if "geojson" in paths:
        write_geojson(paths["geojson"], cells, class_names)
    if "rois" in paths:
        write_rois(paths["rois"], outlined, class_names)
    if "csv" in paths:
        picture = open_picture()
        write_table(paths["csv"], cells, class_names, partial(_chosen_channels, picture), _micrometres(picture))


def _chosen_channels(picture: Picture, *region: int) -> Array:
    """A region with its values as stored, without the black channel that is added to two."""
    pixels = picture.raw(*region)
    return pixels if pixels.ndim == 2 else pixels[:, :, : picture.colours]


def _micrometres(picture: Picture) -> float | None:
    return None if picture.pixel_size is None else picture.pixel_size.micrometres()


def write_picture(
    folder: Path,
    job: Job,
    source: list[str | int] | None,
    picture: Picture,
    detections: Detections,
    formats: Sequence[str],
    class_names: Sequence[str],
    score_threshold: Sequence[float],
) -> None:
    """Write a picture's files, and last its record, which marks them as complete.

    Args:
        folder: folder of the run (:mod:`maskrcnn.export.run_folder`).
        job: the picture's job, whose key names the files.
        source: :func:`maskrcnn.export.jobs.source_of` the job, from before the picture was read.
        picture: the picture, for intensities in the table and for the overlay.
        detections: all its cells, which go into the record; the other files get those with enough score.
        formats: formats of ``--format``.
        class_names: names of classes 1..K.
        score_threshold: minimum score of a cell, one per class.

    Raises:
        InputError: a file cannot be written, or the picture cannot be read again.
    """
    paths = {name: file_of(folder, job.key, name) for name in FILES if name in formats}
    cells = detections.to_cells()
    shown, micrometres = cells.filter(score_threshold), _micrometres(picture)
    write_cells(paths, shown, detections.filter(score_threshold), class_names, lambda: picture, micrometres)
    if "zarr" in formats:
        write_zarr_labels(picture.path, picture.page, shown)
    if "overlay" in paths:
        overlay = draw_overlay(picture.reduced(OVERLAY), detections, class_names, score_threshold)
        with atomic_write(paths["overlay"]) as beside:
            overlay.save(beside, "PNG")  # optimize=True takes ten times as long for a tenth less
    height, width = picture.size
    record = {
        "name": encodable(picture.name),
        "source": source,
        "height": height,
        "width": width,
        "diameter": detections.diameter,
        "pixel_size": micrometres,
        "zarr": "zarr" in formats,
        "results": cells.to_coco(job.image_id),
    }
    write_text(record_of(folder, job.key), to_json(record))
