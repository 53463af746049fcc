"""ImageJ ROIs, read back with roifile, and with ImageJ where it is installed, and compared with label images."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from roifile import ImagejRoi, roiread
from skimage.draw import polygon2mask

from maskrcnn.export.labels import write_labels
from maskrcnn.export.rois import mask_contours, write_rois
from maskrcnn.structures import Detections
from tests.conftest import ROOT
from tests.export.cells import NAMES, apart, crowd, detections_of, disc, masks_of, read_table

IMAGEJ = Path("/usr/share/java/ij.jar")
"""ImageJ in Debian's package libij-java."""


def read(path: Path) -> list[ImagejRoi]:
    rois = roiread(path)
    assert isinstance(rois, list)
    return rois


def soft_cells(count: int = 60, threshold: float = 0.5) -> Detections:
    """Cells of many sizes that do not touch, with probabilities that fall off smoothly, as the network's do."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:28, :28] + 0.5
    stretch, tilt = rng.uniform(0.7, 1.0, (2, count, 1, 1))
    distance = np.hypot((y - 14) / stretch, (x - 14) / tilt + 0.2 * (y - 14))
    masks = torch.from_numpy(1 / (1 + np.exp(distance - 10))).float()
    sides = rng.uniform(2, 60, (count, 2))
    corners = 64.0 * np.stack([np.arange(count) % 10, np.arange(count) // 10], axis=1) + rng.random((count, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + sides], axis=1)).float()
    labels = torch.arange(count) % len(NAMES) + 1
    return Detections(boxes, torch.linspace(0.9, 0.5, count), labels, masks, (384, 640), threshold)


def rasterise(roi: ImagejRoi, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie in an odd number of rings."""
    rings = ImagejRoi.path2coords(roi.multi_coordinates) if roi.composite else [roi.coordinates()]
    return np.sum([polygon2mask(size, ring[:, ::-1] - 0.5) for ring in rings], axis=0) % 2 == 1


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("cells", [soft_cells(), soft_cells(threshold=0.3), apart(), crowd()])
def test_rois_enclose_the_pixels_of_the_masks(tmp_path: Path, cells: Detections) -> None:
    write_rois(tmp_path / "a.zip", cells, NAMES)
    rois, masks = {int(roi.name): roi for roi in read(tmp_path / "a.zip")}, masks_of(cells)
    assert list(rois) == [index + 1 for index in range(len(cells)) if masks[index].any()]
    for number, roi in rois.items():
        mask = masks[number - 1]
        assert overlap(rasterise(roi, cells.size), mask) >= (0.95 if mask.sum() > 50 else 0.75), number


def test_outlines_are_neither_smaller_nor_half_a_pixel_off() -> None:
    """A disc of probabilities that cross the threshold in a circle whose radius and centre are known."""
    y, x = np.mgrid[:28, :28] + 0.5
    mask = (0.5 + (10 - np.hypot(y - 14, x - 14)) / 28).clip(0, 1).astype(np.float32)
    (ring,) = mask_contours(mask, np.array([100.25, 50.5, 156.25, 106.5]), (200, 200), 0.5)
    radius = np.hypot(*(ring - (128.25, 78.5)).T)
    assert abs(radius - 20).max() < 0.05


def test_name_class_colour_and_score(tmp_path: Path) -> None:
    write_rois(tmp_path / "a.zip", apart(), ["one", "two\nlines \U0001f9a0", "three"], [(1, 2, 3), (4, 5, 6)])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == [f"{number}.roi" for number in range(1, 14)]
    for index, roi in enumerate(read(tmp_path / "a.zip")):
        assert (roi.name, roi.group) == (str(index + 1), index % 3 + 1)
        assert roi.stroke_color == [b"\xff\x01\x02\x03", b"\xff\x04\x05\x06", b"\xff\x01\x02\x03"][index % 3]
        assert roi.properties["class"] == ["one", r"two\nlines \U0001f9a0", "three"][index % 3]
        assert roi.properties["score"] == pytest.approx(float(apart().scores[index]), rel=1e-5)


def test_holes_and_parts_are_one_composite_roi_without_specks(tmp_path: Path) -> None:
    write_rois(tmp_path / "a.zip", apart(), NAMES)
    rings = {
        int(roi.name): len(ImagejRoi.path2coords(roi.multi_coordinates)) if roi.composite else 1
        for roi in read(tmp_path / "a.zip")
    }
    assert [rings[number] for number in (1, 5, 6, 7)] == [1, 2, 3, 2]  # disc, hole, island in a hole, two parts
    speck = np.zeros((28, 28), np.float32)
    speck[5:20, 5:20] = 1
    speck[24, 24] = 0.6  # less than a pixel in a box of 14 pixels, between the centres of pixels
    assert len(mask_contours(speck, np.array([0.0, 0, 14, 14]), (50, 50), 0.5)) == 1


def test_the_picture_cuts_outlines_off() -> None:
    mask = np.ones((28, 28), np.float32)
    (ring,) = mask_contours(mask, np.array([-30.0, 90, 30, 150]), (100, 200), 0.5)
    assert (ring.min(axis=0).tolist(), ring.max(axis=0).tolist()) == ([0, 90], [30, 100])
    x, y = ring.T
    assert abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2) == pytest.approx(30 * 10, abs=0.6)  # a corner is cut off


def test_positions_beyond_16_bits(tmp_path: Path) -> None:
    corners = [(0, 32_000), (70_000, 99_000)]
    cells = detections_of([disc(9.4), disc(12) & ~disc(6)], corners, [0.9, 0.8], (100_000, 100_000))
    write_rois(tmp_path / "a.zip", cells, NAMES)
    single, composite = read(tmp_path / "a.zip")
    assert single.coordinates().min(axis=0) == pytest.approx([32_010.6, 10.6], abs=0.5)
    outline = ImagejRoi.path2coords(composite.multi_coordinates)[0]
    assert outline.min(axis=0) == pytest.approx([99_009, 70_009], abs=0.1)


def test_nothing_is_left_of_an_earlier_file(tmp_path: Path) -> None:
    write_rois(tmp_path / "a.zip", crowd(), NAMES)
    write_rois(tmp_path / "a.zip", apart(), NAMES)
    write_rois(tmp_path / "b.zip", apart(), NAMES)
    assert len(read(tmp_path / "a.zip")) == len(apart())
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.skipif(not (IMAGEJ.exists() and shutil.which("java")), reason="needs java and libij-java")
@pytest.mark.parametrize("bits", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_imagej_reads_both(tmp_path: Path, bits: int) -> None:
    """In ImageJ itself, ROIs select the pixels that have their names in the label image."""
    cells = apart()
    if bits == 32:  # 65,536 cells more, all in the same pixel: too many for 16 bits, and for a ZIP without ZIP64
        speck = detections_of([np.ones((1, 1), bool)], [(0, 0)], [0.05], apart().size)
        specks = speck.select(torch.zeros(2**16, dtype=torch.int64))
        parts = {
            name: torch.cat([getattr(specks, name), getattr(cells, name)]) for name in ("boxes", "scores", "labels")
        }
        cells = replace(cells, masks=torch.cat([specks.masks, cells.masks]), **parts)
    write_labels(tmp_path / "a.tif", cells)
    write_rois(tmp_path / "a.zip", cells, NAMES)
    command = [
        "java",
        "-Djava.awt.headless=true",
        "-cp",
        str(IMAGEJ),
        str(Path(__file__).parent / "ReadWithImageJ.java"),
    ]
    run = subprocess.run(
        [*command, tmp_path / "a.tif", tmp_path / "a.zip"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = [
        line for line in run.stdout.splitlines() if not line.startswith("LUT")
    ]  # its colours of groups are missing
    assert lines[0] == f"{cells.size[1]} {cells.size[0]} {bits}"
    assert len(lines) == 1 + len(cells)
    pattern = re.compile(r"(\d+) (.*) (Freehand|Composite) (\d+) (\d+) (\d+) (\d+)\.roi")
    for index, mask in enumerate(masks_of(apart()), start=len(cells) - len(apart())):
        match = pattern.fullmatch(lines[1 + index])
        assert match, lines[1 + index]
        name, label, _, area, common, labelled, entry = match.groups()
        assert (int(name), int(entry), label) == (index + 1, index + 1, NAMES[int(cells.labels[index]) - 1])
        assert int(labelled) == mask.sum()
        assert int(common) / (int(area) + int(labelled) - int(common)) >= 0.95


@pytest.mark.skipif(
    not (IMAGEJ.exists() and shutil.which("java") and shutil.which("xvfb-run")),
    reason="needs java, libij-java, xvfb and xauth",
)
def test_the_macro_of_the_documentation_measures_the_cells(tmp_path: Path) -> None:
    cells = apart()
    tifffile.imwrite(tmp_path / "a.tif", np.full(cells.size, 7, np.uint8))
    write_rois(tmp_path / "a.zip", cells, NAMES)
    macro = (ROOT / "docs" / "fiji.ijm").read_text() + f'saveAs("Results", "{tmp_path}/a.csv"); run("Quit");\n'
    (tmp_path / "a.ijm").write_text(macro)
    command = ["xvfb-run", "-a", "java", "-cp", str(IMAGEJ), "ij.ImageJ", "-batch", str(tmp_path / "a.ijm")]
    subprocess.run([*command, f"{tmp_path}/a.tif|{tmp_path}/a.zip"], check=True, timeout=120, capture_output=True)
    rows = read_table(tmp_path / "a.csv")
    assert [row["Cell"] for row in rows] == [str(number) for number in range(1, len(cells) + 1)]
    assert [row["Class"] for row in rows] == [NAMES[label - 1] for label in cells.labels.tolist()]
    for row, mask in zip(rows, masks_of(cells), strict=True):
        assert float(row["Area"]) == pytest.approx(mask.sum(), rel=0.05)
        assert float(row["Mean"]) == 7
