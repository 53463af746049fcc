"""The structure of an OME-Zarr on a local disk (NGFF 0.4 and 0.5): its images, their axes, places and pixel sizes.

https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from maskrcnn.data.pixel_size import PixelSize, micrometres_per
from maskrcnn.data.stored import needed, place_of
from maskrcnn.errors import InputError

METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
"""Files that a folder of Zarr, 3 or 2, has at least one of."""


def is_zarr(path: Path) -> bool:
    """Whether the path is a folder of a Zarr store."""
    # unlike Path.is_dir, no OSError for an invalid name
    return os.path.isdir(path) and any(os.path.isfile(path / name) for name in METADATA)


def metadata_of(path: Path) -> Path:
    """The file with the metadata of a Zarr folder; for anything else, ``path`` itself."""
    return next((path / name for name in METADATA if (path / name).is_file()), path) if path.is_dir() else path


@dataclass(frozen=True)
class ZarrImage:
    """One multiscale image of a store.

    Attributes:
        folder: its group's folder.
        place: its well, field and series (``B03_f0``, ``s1``); "" for a store of one image.
        arrays: the zarr.Array of each level, the full size first.
        axes: one letter per axis: ``tczyx`` or fewer, height and width last.
        metadata: the contents of ``multiscales[0]``.
        version: of NGFF, ``0.4``.
        channels: names of the channels, () if they have none.
    """

    folder: Path
    place: str
    arrays: list[Any]
    axes: str
    metadata: dict[str, Any]
    version: str
    channels: tuple[str, ...]

    def planes(self) -> Iterator[dict[str, int]]:
        """The indices of each picture on the axes other than channel, height and width."""
        names = [axis for axis in self.axes if axis not in "cyx"]
        lengths = [self.arrays[0].shape[self.axes.index(axis)] for axis in names]
        for indices in product(*map(range, lengths)):
            yield dict(zip(names, indices, strict=True))

    def place_of(self, plane: dict[str, int]) -> str:
        """The place of a picture in the store; an axis with one entry is left out."""
        lengths = dict(zip(self.axes, self.arrays[0].shape, strict=True))
        inner = place_of(**{axis: index for axis, index in plane.items() if lengths[axis] > 1})
        return "_".join(part for part in (self.place, inner) if part)


def open_images(path: Path) -> list[ZarrImage]:
    """The images of a store. Raises InputError if it has none, or zarr is not installed."""
    zarr = needed("zarr", "zarr", path)
    root = zarr.open(path, mode="r")
    attributes = _ome(root)
    if "plate" in attributes:
        wells = [well["path"] for well in attributes["plate"]["wells"]]
        fields = [(well, field["path"]) for well in wells for field in _ome(root[well])["well"]["images"]]
        groups = [(f"{well}/{field}", f"{_short_well(well)}_f{field}") for well, field in fields]
    elif "well" in attributes:
        groups = [(field["path"], f"f{field['path']}") for field in attributes["well"]["images"]]
    elif "multiscales" in attributes:
        groups = [("", "")]
    else:  # bioformats2raw.layout
        series = _ome(root["OME"]).get("series") if "OME" in root else None
        names = series or sorted((name for name in root.group_keys() if name.isdigit()), key=int)
        groups = [(name, f"s{name}") for name in names]
    images = [_image(path, root, name, place) for name, place in groups]
    if not images:
        raise InputError(f"{path}: a Zarr group without multiscales, a plate or series, expected OME-Zarr 0.4 or 0.5")
    return images


def _ome(group: Any) -> dict[str, Any]:
    """NGFF's attributes of a group: under ``ome`` since 0.5."""
    attributes = group.attrs.asdict()
    found: dict[str, Any] = attributes.get("ome", attributes)
    return found


def _short_well(path: str) -> str:
    """``B/3`` and ``B/03`` as ``B03``."""
    row, column = path.split("/")
    return row + (column.zfill(2) if column.isdigit() else column)


def _image(path: Path, root: Any, name: str, place: str) -> ZarrImage:
    group = root[name] if name else root
    attributes = _ome(group)
    metadata = attributes["multiscales"][0]
    axes = "".join(axis["name"] if isinstance(axis, dict) else axis for axis in metadata.get("axes", "tczyx"))
    arrays = [group[dataset["path"]] for dataset in metadata["datasets"]]
    if not axes.endswith("yx") or len(set(axes)) < len(axes) or len(axes) != arrays[0].ndim:
        raise InputError(f"{path / name}: axes {axes} of size {arrays[0].shape}, expected t, c, z before y and x")
    version = attributes.get("version") or metadata.get("version") or "0.4"
    names = tuple(str(channel.get("label", "")) for channel in attributes.get("omero", {}).get("channels", []))
    return ZarrImage(path / name if name else path, place, arrays, axes, metadata, str(version), names)


def pixel_size_of(image: ZarrImage) -> PixelSize | None:
    """The scale of the full size, times that of the whole image, in the units of its axes."""
    units = [axis.get("unit") if isinstance(axis, dict) else None for axis in image.metadata.get("axes", [])][-2:]
    factors = [micrometres_per(unit) for unit in units]
    if len(factors) < 2 or factors[0] is None or factors[1] is None:
        return None
    sides = [factors[0], factors[1]]
    transforms = image.metadata["datasets"][0].get("coordinateTransformations", [])
    for transform in [*transforms, *image.metadata.get("coordinateTransformations", [])]:
        if transform.get("type") == "scale":
            sides = [side * scale for side, scale in zip(sides, transform["scale"][-2:], strict=True)]
    return PixelSize(sides[0], sides[1], "OME-Zarr")
