"""Generates a synthetic data set in the HW3 layout, with four kinds of cells and several stains.

    python -m maskrcnn.data.synthetic DIR --train 64 --test 16 --size 256 --seed 0

The four classes resemble those of the H&E task: 1 epithelial (large, oval, pale, with nucleoli), 2 lymphocyte (small,
round, dark), 3 macrophage (largest, irregular, pale with a dark rim, rare) and 4 neutrophil (lobed, dark, rare). Cells
form clusters and touch; a few overlap a cell of another class. The stain determines the colours of a picture, by light
that is absorbed (brightfield) or emitted (fluorescence).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import tifffile
import tyro
from scipy.ndimage import gaussian_filter

from maskrcnn.data.hw3 import IMAGE
from maskrcnn.data.id_mapping import MAPPING
from maskrcnn.errors import InputError, one_line_errors, writing
from maskrcnn.options import Range, checked

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CellType:
    """Appearance of the cells of one class.

    Attributes:
        fraction: fraction of all cells.
        radius: smallest and largest mean radius, in pixels.
        elongation: maximum ratio of longest to shortest diameter.
        roughness: amplitude of the outline's waves, as a fraction of the radius.
        lobes: number of round parts of a cell.
        density: amount of stain.
        rim: additional density at the outline.
        nucleoli: number of dark spots inside.
    """

    fraction: float
    radius: tuple[float, float]
    elongation: float
    roughness: float
    lobes: int
    density: float
    rim: float
    nucleoli: int


CELL_TYPES = (
    CellType(0.42, (8.0, 12.0), 1.6, 0.05, 1, 0.75, 0.15, 2),
    CellType(0.40, (4.5, 6.5), 1.15, 0.04, 1, 1.7, 0.0, 0),
    CellType(0.10, (12.0, 17.0), 1.4, 0.14, 1, 0.45, 0.7, 1),
    CellType(0.08, (7.0, 9.0), 1.0, 0.05, 3, 1.35, 0.0, 0),
)


@dataclass(frozen=True)
class Stain:
    """Colours of a picture: one unit of density absorbs ``color`` of ``background``, or adds it if it ``emits``."""

    background: tuple[float, float, float]
    color: tuple[float, float, float]
    emits: bool = False


STAINS = (
    Stain((0.93, 0.78, 0.87), (0.75, 1.15, 0.45)),  # haematoxylin and eosin
    Stain((0.88, 0.84, 0.93), (0.95, 1.05, 0.50)),  # purple tissue
    Stain((0.95, 0.94, 0.90), (0.50, 0.85, 1.30)),  # brown stain on white
    Stain((0.04, 0.04, 0.05), (0.42, 0.42, 0.42), emits=True),  # fluorescence
)

AREA_PER_CELL = 700.0  # in pixels
MIN_VISIBLE = 20  # minimum number of visible pixels of a cell
REACH = 32  # maximum distance in pixels of a cell's pixels from its centre


def draw_picture(size: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Draw one picture: RGB uint8 [size, size, 3] and label planes uint16 [4, size, size] of classes 1..4."""
    planes = np.zeros((len(CELL_TYPES), size, size), dtype=np.uint16)
    density = 0.12 * _noise(size, 24, rng) + 0.05 * _noise(size, 3, rng)
    center: FloatArray | None = None
    for identity in range(1, rng.poisson(size * size / AREA_PER_CELL) + 1):
        if center is None or rng.random() < 0.3:  # else another cell of the same cluster
            center = rng.uniform(0, size, 2)
        position = rng.normal(center, 0.09 * size + 8)
        kind = int(rng.choice(len(CELL_TYPES), p=[cell.fraction for cell in CELL_TYPES]))
        _add_cell(CELL_TYPES[kind], planes, kind, identity, density, position, rng)
    stain = STAINS[rng.integers(len(STAINS))]
    return _render(density, stain, rng), planes


@checked
def write_dataset(
    root: str | Path,
    train: Annotated[int, Range(2, 1_000_000)] = 64,
    test: Annotated[int, Range(0, 1_000_000)] = 16,
    size: Annotated[int, Range(32, 16384)] = 256,
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0,
) -> None:
    """Write a data set: ``train/<name>/image.tif`` with ``class1.tif`` ..., ``test_release/`` and its id mapping.

    Args:
        root: a folder that does not exist or is empty.
        train, test: number of pictures.
        size: side of the pictures, in pixels.
        seed: the same seed gives the same files.

    Raises:
        InputError: the folder is not empty or cannot be written, or a number is out of its range.
    """
    root = Path(root)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise InputError(f"{root}: not empty; expected a new folder")
        for index, generator in enumerate(np.random.default_rng([seed, 0]).spawn(train), start=1):
            _write_training_picture(root / "train" / f"synthetic-{index:04d}", size, generator)
        (root / "test_release").mkdir()
        mapping = []
        for index, generator in enumerate(np.random.default_rng([seed, 1]).spawn(test), start=1):
            image, _ = draw_picture(size, generator)
            name = f"synthetic-test-{index:04d}.tif"
            _write_tiff(root / "test_release" / name, image)
            mapping.append({"file_name": name, "id": index, "height": size, "width": size})
        (root / MAPPING).write_text(json.dumps(mapping, indent=1) + "\n")


def _write_training_picture(folder: Path, size: int, rng: np.random.Generator) -> None:
    image, planes = draw_picture(size, rng)
    folder.mkdir(parents=True)
    _write_tiff(folder / IMAGE, image)
    for number, plane in enumerate(planes, start=1):
        if plane.any():
            _write_tiff(folder / f"class{number}.tif", plane)


def _write_tiff(path: Path, array: npt.NDArray[np.generic]) -> None:
    tifffile.imwrite(path, array, compression="lzw", predictor=array.ndim == 3)


def _noise(size: int, sigma: float, rng: np.random.Generator) -> FloatArray:
    """Smooth noise of mean 0 and standard deviation 1, [size, size]."""
    field = gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


def _add_cell(
    cell: CellType,
    planes: npt.NDArray[np.uint16],
    kind: int,
    identity: int,
    density: FloatArray,
    position: FloatArray,
    rng: np.random.Generator,
) -> None:
    """Draw a cell into its plane and the density, unless too many of its pixels belong to other cells."""
    size = density.shape[0]
    y0, x0 = (int(np.clip(p - REACH, 0, size)) for p in position)
    y1, x1 = (int(np.clip(p + REACH, 0, size)) for p in position)
    window = (slice(y0, y1), slice(x0, x1))
    if y1 <= y0 or x1 <= x0:
        return
    y, x = np.mgrid[y0:y1, x0:x1]
    depth = _depth(cell, y + 0.5 - position[0], x + 0.5 - position[1], rng)
    mask = depth > 0
    overlaps = rng.random() < 0.06  # may overlap cells of other classes
    taken = planes[kind][window] > 0 if overlaps else planes[:, *window].any(axis=0)
    free = mask & ~taken
    if free.sum() < max(MIN_VISIBLE, 0.6 * mask.sum()):
        return
    planes[kind][window][free] = identity
    stain = cell.density * rng.uniform(0.85, 1.15) * (1 + 0.12 * _noise(2 * REACH, 2, rng)[: y1 - y0, : x1 - x0])
    stain = stain + cell.rim * np.exp(-((depth / 0.12) ** 2))
    for _ in range(cell.nucleoli):
        spot = position + rng.normal(0, 0.25 * cell.radius[0], 2)
        stain = stain + 0.9 * np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / 2.5)
    density[window] = np.where(free, stain, density[window])


def _depth(cell: CellType, dy: FloatArray, dx: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Depth of points (offsets from the centre) in the cell: 1 at its centre, 0 on the outline, negative outside."""
    radius = rng.uniform(*cell.radius)
    if cell.lobes > 1:
        angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi / cell.lobes * np.arange(cell.lobes)
        parts = [
            1 - np.hypot(dy - 0.5 * radius * np.sin(a), dx - 0.5 * radius * np.cos(a)) / (0.58 * radius) for a in angles
        ]
        return np.max(parts, axis=0)
    turn, stretch = rng.uniform(0, np.pi), np.sqrt(rng.uniform(1, cell.elongation))
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / stretch
    v = (np.cos(turn) * dy - np.sin(turn) * dx) * stretch
    angle = np.arctan2(v, u)
    waves = sum(np.cos(k * angle + rng.uniform(0, 2 * np.pi)) / k for k in range(2, 6))
    return 1 - np.hypot(u, v) / (radius * (1 + cell.roughness * waves))


def _render(density: FloatArray, stain: Stain, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Render the picture that a microscope takes: colours, slight blur, uneven illumination, sensor noise."""
    background, color = np.array(stain.background), np.array(stain.color) * rng.uniform(0.85, 1.15)
    amount = gaussian_filter(density, 0.6)[..., None]
    # Beer-Lambert law: transmitted light decreases exponentially with the density
    light = background + color * amount.clip(0) if stain.emits else background * np.exp(-color * amount)
    shade = 1 + 0.05 * _noise(density.shape[0], density.shape[0] / 4, rng)[..., None]
    return ((light * shade + rng.normal(0, 0.012, light.shape)) * 255).round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class SyntheticOptions:
    """Write a synthetic four-class data set in the HW3 layout."""

    root: tyro.conf.Positional[Path]
    """A new folder."""
    train: int = 64
    """Training pictures."""
    test: int = 16
    """Test pictures, without masks."""
    size: int = 256
    """Side of the pictures, in pixels."""
    seed: int = 0
    """The same seed gives the same pictures."""


if __name__ == "__main__":
    with one_line_errors():
        options = tyro.cli(SyntheticOptions)
        write_dataset(options.root, options.train, options.test, options.size, options.seed)
        print(f"{options.root}: {options.train} training and {options.test} test pictures")
