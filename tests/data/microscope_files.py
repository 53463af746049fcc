"""Files as microscopes write them, made by the libraries of their formats, for the tests of readers and of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

APERIO = "Aperio Image Library v11.2.1\r\n{0}x{1} [0,0 {0}x{1}] (256x256) JPEG/RGB Q=90|AppMag = 40|MPP = {2}"


def halved(pixels: np.ndarray, factor: int = 2) -> np.ndarray:
    """The mean of blocks of ``factor`` x ``factor`` pixels of [h, w] or [h, w, 3]; what is left over is dropped."""
    height, width = (side // factor for side in pixels.shape[:2])
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, *pixels.shape[2:])
    return np.rint(blocks.mean(axis=(1, 3))).astype(pixels.dtype)


def write_svs(
    path: Path, pixels: np.ndarray, factors: tuple[int, ...] = (4, 16), mpp: float = 0.25, **options: Any
) -> Path:
    """A slide as Aperio's scanners write it: the full size, a thumbnail, then the other levels, each in tiles."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None, **options}
    height, width = pixels.shape[:2]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, description=APERIO.format(width, height, mpp), **options)
        tiff.write(halved(pixels, 16), description="Aperio Image Library v11.2.1", photometric="rgb", metadata=None)
        for factor in factors:
            tiff.write(halved(pixels, factor), description=APERIO.format(width, height, mpp), **options)
    return path


def write_ome_zarr(
    folder: Path,
    pixels: np.ndarray,
    axes: str,
    version: str = "0.4",
    levels: int = 2,
    pixel_size: float | None = 0.5,
    chunk: int = 32,
    labels: tuple[str, ...] = (),
) -> Path:
    """An image of OME-Zarr, each level half of the one before; ``pixels`` [..., y, x]."""
    import zarr

    format = 2 if version == "0.4" else 3
    group = zarr.open_group(folder, mode="w", zarr_format=format)
    datasets = []
    for level in range(levels):
        flat = pixels.reshape(-1, *pixels.shape[-2:])
        reduced = np.stack([halved(plane, 2**level) for plane in flat]).reshape(
            *pixels.shape[:-2], -1, flat.shape[2] // 2**level
        )
        array = group.create_array(
            str(level),
            shape=reduced.shape,
            chunks=(*[1] * (reduced.ndim - 2), chunk, chunk),
            dtype=reduced.dtype,
            chunk_key_encoding={"name": "v2" if format == 2 else "default", "separator": "/"},
            dimension_names=list(axes) if format == 3 else None,
        )
        array[...] = reduced
        scale = [(pixel_size or 1.0) * 2.0**level if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    described = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in described:
        if axis["type"] == "space" and pixel_size is not None:
            axis["unit"] = "micrometer"
    attributes: dict[str, Any] = {"multiscales": [{"name": "x", "axes": described, "datasets": datasets}]}
    if labels:
        attributes["omero"] = {"channels": [{"label": label} for label in labels]}
    if format == 2:
        attributes["multiscales"][0]["version"] = version
        group.attrs.put(attributes)
    else:
        group.attrs.put({"ome": {"version": version, **attributes}})
    return folder


def write_plate(folder: Path, wells: dict[str, list[np.ndarray]], axes: str, version: str = "0.4") -> Path:
    """A plate of OME-Zarr; the fields of each well, such as ``B/03``, by its path."""
    import zarr

    format = 2 if version == "0.4" else 3

    def attributes(kind: str, value: dict[str, Any]) -> dict[str, Any]:
        return {kind: {**value, "version": version}} if format == 2 else {"ome": {"version": version, kind: value}}

    root = zarr.open_group(folder, mode="w", zarr_format=format)
    paths = [{"path": well, "rowIndex": 0, "columnIndex": 0} for well in wells]
    root.attrs.put(attributes("plate", {"wells": paths, "rows": [], "columns": []}))
    for well, fields in wells.items():
        group = root.create_group(well)
        group.attrs.put(attributes("well", {"images": [{"path": str(field)} for field in range(len(fields))]}))
        for field, pixels in enumerate(fields):
            write_ome_zarr(folder / well / str(field), pixels, axes, version)
    return folder


def write_czi(path: Path, scenes: dict[int, tuple[int, int, np.ndarray]], pixel_size: float = 0.25) -> Path:
    """A CZI by pylibCZIrw: by scene the x and y of its corner, and its pixels [t, z, c, y, x] or [t, z, c, y, x, 3]."""
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        for scene, (x, y, pixels) in scenes.items():
            for t, z, c in np.ndindex(pixels.shape[:3]):
                plane = pixels[t, z, c]
                data = plane[:, :, None] if plane.ndim == 2 else plane[:, :, ::-1]
                file.write(np.ascontiguousarray(data), location=(x, y), plane={"T": t, "Z": z, "C": c}, scene=scene)
        names = {channel: f"dye{channel}" for channel in range(pixels.shape[2])}
        file.write_metadata("test", names, pixel_size * 1e-6, pixel_size * 1e-6, 1e-6)
    return path
