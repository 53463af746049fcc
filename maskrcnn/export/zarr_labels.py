"""Writes label images into the ``labels/`` group of the OME-Zarr that holds the picture, as NGFF 0.4 and 0.5 have it.

https://ngff.openmicroscopy.org/0.5/#labels-md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskrcnn.data.ngff import ZarrImage, is_zarr, open_images
from maskrcnn.data.stored import needed, readable, scale_between
from maskrcnn.errors import InputError, writing
from maskrcnn.export.labels import painting_order
from maskrcnn.structures import Cells, Detections
from maskrcnn.structures.rle import cell_boxes, cell_window

NAME = "maskrcnn"
"""Name of the label image in ``labels/``."""

CHUNK = 512
"""Side of a chunk in pixels."""


def create_zarr_labels(paths: Sequence[Path]) -> None:
    """Create the empty label image of each image in the stores; existing ones of the right sizes are kept.

    One process does so before any label is written.

    Raises:
        InputError: a path is no OME-Zarr, or cannot be written.
    """
    for path in dict.fromkeys(paths):
        if not is_zarr(path):
            raise InputError(f"--format zarr: {path} is no OME-Zarr, whose labels/ it could write; choose labels")
        with readable(path), writing(path):
            for image in open_images(path):
                _create(image)


def write_zarr_labels(folder: Path, page: int, detections: Detections | Cells) -> None:
    """Write the cells of one picture: 0 for background, i + 1 for detection i, the same id as in the table.

    All levels of the image's pyramid are written, each from the cells themselves: a pixel of a coarser level has the
    value at its centre. Where cells overlap, the higher score wins. One row of chunks is in memory at a time.

    Args:
        folder: folder of the image's group; :func:`create_zarr_labels` was called for its store.
        page: number of the picture among the image's planes.
        detections: its cells, on any device.

    Raises:
        InputError: the store cannot be written.
    """
    with readable(folder), writing(folder):
        (image,) = open_images(folder)
        plane = list(image.planes())[page]
        outer = tuple(plane[axis] for axis in image.axes[:-2] if axis != "c")
        rles = detections.to_rle()
        boxes, order = cell_boxes(rles), painting_order(detections)
        group = needed("zarr", "zarr", folder).open_group(folder / "labels" / NAME, mode="r+")
        for dataset, full in zip(image.metadata["datasets"], image.arrays, strict=True):
            _write_level(group[dataset["path"]], outer, rles, boxes, order, detections.size, full.shape[-2:])


def _write_level(
    array: Any,
    outer: tuple[int, ...],
    rles: Sequence[dict[str, Any]],
    boxes: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    size: tuple[int, int],
    coarse: tuple[int, int],
) -> None:
    """Write one level of ``coarse`` (H, W) pixels, band by band; the cells are those of a picture of ``size``."""
    rows, columns = (
        np.minimum(((np.arange(few) + 0.5) * scale).astype(np.int64), full - 1)
        for few, full, scale in zip(coarse, size, scale_between(size, coarse), strict=True)
    )  # the row and column of the full size at each pixel's centre
    for first in range(0, coarse[0], CHUNK):
        of_band = rows[first : first + CHUNK]
        band = np.zeros((len(of_band), coarse[1]), np.uint32)
        inside = (boxes[order, 0] <= of_band[-1]) & (boxes[order, 2] > of_band[0])
        for index in order[inside]:
            top, left, mask = cell_window(rles[index])
            y1, y2 = np.searchsorted(of_band, (top, top + mask.shape[0]))
            x1, x2 = np.searchsorted(columns, (left, left + mask.shape[1]))
            seen = mask[np.ix_(of_band[y1:y2] - top, columns[x1:x2] - left)]
            band[y1:y2, x1:x2][seen] = index + 1
        array[(*outer, slice(first, first + len(of_band)))] = band


def _create(image: ZarrImage) -> None:
    zarr = needed("zarr", "zarr", image.folder)
    format = image.arrays[0].metadata.zarr_format
    kept = [index for index, axis in enumerate(image.axes) if axis != "c"]
    labels = zarr.open_group(image.folder / "labels", mode="a", zarr_format=format)
    group = labels.require_group(NAME)
    datasets = image.metadata["datasets"]
    for dataset, full in zip(datasets, image.arrays, strict=True):
        shape = tuple(full.shape[index] for index in kept)
        path = dataset["path"]
        if path in group and group[path].shape == shape:
            continue
        group.create_array(
            path,
            shape=shape,
            chunks=(*[1] * (len(shape) - 2), *(min(side, CHUNK) for side in shape[-2:])),
            dtype="uint32",
            fill_value=0,
            chunk_key_encoding={"name": "v2" if format == 2 else "default", "separator": "/"},
            dimension_names=[image.axes[index] for index in kept] if format == 3 else None,
            overwrite=True,
        )
    multiscale: dict[str, Any] = {
        "name": NAME,
        "axes": [image.metadata["axes"][index] for index in kept],
        "datasets": [{**dataset, **_transforms(dataset, kept)} for dataset in datasets],
        **_transforms(image.metadata, kept),
    }
    label: dict[str, Any] = {"source": {"image": "../../"}}
    described = {"multiscales": [multiscale], "image-label": label}
    before = labels.attrs.asdict()
    names = before.get("ome", before).get("labels", [])
    listed = {"labels": names if NAME in names else [*names, NAME]}
    if format == 3:
        group.attrs.put({"ome": {"version": image.version, **described}})
        labels.attrs.update({"ome": {"version": image.version, **listed}})
    else:
        multiscale["version"] = label["version"] = image.version
        group.attrs.put(described)
        labels.attrs.update(listed)


def _transforms(owner: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """The coordinate transformations of an image or a level without its channel axis."""
    if "coordinateTransformations" not in owner:
        return {}
    return {
        "coordinateTransformations": [
            {
                name: [value[index] for index in kept] if isinstance(value, list) else value
                for name, value in transform.items()
            }
            for transform in owner["coordinateTransformations"]
        ]
    }
