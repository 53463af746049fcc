"""Reads Zeiss' CZI with pylibCZIrw: one picture per scene, time and depth, mosaics composed, by region and level."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn.data.colours import channels_to_read, pick
from maskrcnn.data.ome_xml import well_name
from maskrcnn.data.pixel_size import MICROMETRES, PixelSize
from maskrcnn.data.stored import Array, Level, ReadRegion, StoredPicture, named, needed, place_of, readable

_MAGIC = b"ZISRAWFILE"


def is_czi(path: Path) -> bool:
    """Whether the file starts with the signature of a CZI."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def open_czi(path: Path, channels: Sequence[int] | None, colours: bool) -> list[StoredPicture]:
    """Open the pictures of a CZI. Scenes of a plate are placed by well and field, others by their number.

    Args:
        path: the file.
        channels: the channels to use; None: grey or RGB.
        colours: False returns all channels with their values as stored.

    Raises:
        InputError: the file is damaged, pylibCZIrw is not installed, or :func:`channels_to_read` raises it.
    """
    with readable(path):
        reader = needed("pylibCZIrw.czi", "czi", path).CziReader(str(path))
        file = _Czi(reader, path)
        scenes = reader.scenes_bounding_rectangle_no_pyramid
        areas: dict[int | None, Any] = dict(sorted(scenes.items()))
        areas = areas or {None: reader.total_bounding_rectangle_no_pyramid}
        places = _scene_places(file.information, list(scenes)) if len(scenes) > 1 else {}
        found = []
        for scene, area in areas.items():
            for plane in file.planes():
                place = "_".join(part for part in (places.get(scene, ""), place_of(**plane)) if part)
                found.append(file.picture(scene, area, plane, place, channels, colours))
        return named(found, path)


class _Czi:
    """An open CZI with its metadata; one thread reads at a time."""

    def __init__(self, reader: Any, path: Path) -> None:
        self.reader, self.path, self.lock = reader, path, threading.Lock()
        weakref.finalize(self, reader.close)
        self.box: dict[str, tuple[int, int]] = reader.total_bounding_box
        self.samples = {name: 3 if kind.startswith("Bgr") else 1 for name, kind in reader.pixel_types.items()}
        metadata = reader.metadata.get("ImageDocument", {}).get("Metadata", {})
        self.information = metadata.get("Information", {}).get("Image", {}).get("Dimensions") or {}
        self.pixel_size = _pixel_size(metadata)
        self.reduced: set[tuple[int, int, int]] = set()  # factor, x, y of the blocks of the pyramid
        reader.enumerate_subblocks(self._note_reduced)

    def _note_reduced(self, _: int, block: Any) -> bool:
        factor = round(1 / block.get_zoom())
        if factor > 1:
            self.reduced.add((factor, block.logicalRect.x, block.logicalRect.y))
        return True

    def factors(self, area: Any) -> list[int]:
        """By how much each level of the scene in ``area`` is reduced.

        None without a pyramid: libCZI would take single pixels of the full size.
        """
        return sorted(
            {factor for factor, x, y in self.reduced if area.x <= x < area.x + area.w and area.y <= y < area.y + area.h}
        )

    def planes(self) -> Iterator[dict[str, int]]:
        """The indices of each picture by axis in lower case, without axes of one entry."""
        ranges = {axis.lower(): range(*ends) for axis, ends in self.box.items() if axis not in "CXY"}
        ranges = {axis: ends for axis, ends in ranges.items() if len(ends) > 1}
        for indices in product(*ranges.values()):
            yield dict(zip(ranges, indices, strict=True))

    def picture(
        self,
        scene: int | None,
        area: Any,
        plane: Mapping[str, int],
        place: str,
        channels: Sequence[int] | None,
        colours: bool,
    ) -> StoredPicture:
        count = sum(self.samples.values())
        chosen = channels_to_read(count, channels, self.path, colours)
        owners: list[tuple[int, int]] = [
            (channel, sample) for channel, number in self.samples.items() for sample in range(number)
        ]
        used = sorted({owners[index][0] for index in chosen})

        def reader(factor: int) -> ReadRegion:
            def read(top: int, left: int, height: int, width: int) -> Array:
                roi = area.x + left * factor, area.y + top * factor, width * factor, height * factor
                with self.lock, readable(self.path):
                    parts = {
                        channel: self._read(roi, {**plane, "C": channel}, scene, 1 / factor, (height, width))
                        for channel in used
                    }
                planes = [parts[channel][:, :, sample] for channel, sample in (owners[index] for index in chosen)]
                pixels = np.stack(planes, axis=2)
                return pick(pixels, range(len(chosen))) if colours or count == 1 else pixels

            return read

        levels = tuple(Level(reader(f), (area.h // f, area.w // f)) for f in self.factors(area))
        size = area.h, area.w
        names = _channel_names(self.information)
        return StoredPicture(reader(1), size, self.path, self.path.name, 0, place, levels, self.pixel_size, names)

    def _read(
        self, roi: tuple[int, int, int, int], plane: Mapping[str, int], scene: int | None, zoom: float, size: Any
    ) -> Array:
        """One channel of a region [height, width, samples], reduced by ``zoom``, RGB."""
        indices = {axis.upper(): index for axis, index in plane.items()}
        pixels: Array = self.reader.read(roi=roi, plane=indices, scene=scene, zoom=zoom)
        return pixels[: size[0], : size[1], ::-1]


def _scene_places(information: Mapping[str, Any], scenes: Sequence[int]) -> dict[int | None, str]:
    """``B03_f0`` for scenes in wells of a plate, ``s0`` for others."""
    described = _listed((information.get("S") or {}).get("Scenes", {}).get("Scene"))
    wells = {int(scene.get("@Index", -1)): scene.get("Shape") or {} for scene in described}
    fields: dict[str, int] = {}
    places: dict[int | None, str] = {}
    for scene in scenes:
        shape = wells.get(scene, {})
        if not {"RowIndex", "ColumnIndex"} <= set(shape):
            places[scene] = f"s{scene}"
            continue
        well = well_name(int(shape["RowIndex"]) - 1, int(shape["ColumnIndex"]) - 1)
        places[scene] = f"{well}_f{fields.setdefault(well, 0)}"
        fields[well] += 1
    return places


def _channel_names(information: Mapping[str, Any]) -> tuple[str, ...]:
    channels = _listed((information.get("Channels") or {}).get("Channel"))
    return tuple(str(channel.get("@Name") or "") for channel in channels)


def _listed(entries: Any) -> list[Any]:
    """The entries of an XML element as a list; the parser gives a single one as itself."""
    return entries if isinstance(entries, list) else [entries] if entries else []


def _pixel_size(metadata: Mapping[str, Any]) -> PixelSize | None:
    """The scaling of X and Y, which is in metres."""
    items = _listed(((metadata.get("Scaling") or {}).get("Items") or {}).get("Distance"))
    sides = {item.get("@Id"): item.get("Value") for item in items}
    if sides.get("X") is None or sides.get("Y") is None:
        return None
    return PixelSize(float(sides["Y"]) * MICROMETRES["m"], float(sides["X"]) * MICROMETRES["m"], "CZI")
