"""Estimated cell diameters, with a stand-in for a network that only detects cells near its canonical diameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from skimage.draw import disk
from skimage.measure import label, regionprops
from torch import Tensor

from maskrcnn.data.arrays import picture_of
from maskrcnn.errors import InputError
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections
from tests.stand_in import StandIn

CANONICAL = 30.0


class DiscFinder(StandIn):
    """Finds bright discs of a third to three times the canonical diameter, and is surer the closer they are to it."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []
        y, x = np.mgrid[:28, :28] + 0.5
        self.disc = torch.from_numpy(((y - 14) ** 2 + (x - 14) ** 2 <= 14**2).astype(np.float32))

    def detect(self, image: Tensor) -> Detections:
        size = (image.shape[1], image.shape[2])
        self.shapes.append(size)
        bright = image[0].numpy() > 100
        found = []
        for region in regionprops(label(bright)):
            octaves = abs(np.log2(region.equivalent_diameter_area / CANONICAL))
            if octaves < np.log2(3):
                y1, x1, y2, x2 = region.bbox
                found.append((x1, y1, x2, y2, 0.99 - 0.2 * octaves))
        rows = torch.tensor(found).float().view(-1, 5)
        rows = rows[rows[:, 4].argsort(descending=True)]
        count = len(rows)
        return Detections(rows[:, :4], rows[:, 4], torch.ones(count).long(), self.disc.repeat(count, 1, 1), size)


def discs(diameters: Sequence[float], side: int) -> np.ndarray:
    """A picture with discs, row by row, until it is full."""
    picture = np.zeros((side, side), np.uint8)
    step = 1.6 * max(diameters)
    centers = [(y, x) for y in np.arange(step, side - step, step) for x in np.arange(step, side - step, step)]
    for number, (y, x) in enumerate(centers):
        picture[disk((y - 0.5, x - 0.5), diameters[number % len(diameters)] / 2)] = 220
    return picture


def predictor(diameter: float | None = CANONICAL, **options: Any) -> Predictor:
    return Predictor(DiscFinder(), None, ["disc"], torch.device("cpu"), "fp32", diameter=diameter, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "side"), [(11, 200), (16, 300), (30, 400), (75, 700)])
def test_one_size(size: float, side: int) -> None:
    """Within 7 %: as exact as whole pixels are. The cells come back in the picture's own pixels."""
    picture = discs([size], side)
    cells = predictor()(picture)
    assert cells.diameter == pytest.approx(size, rel=0.07)
    assert cells.size == picture.shape
    truth = regionprops(label(picture > 100))
    assert len(cells) == len(truth)
    expected = torch.tensor([[r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]] for r in truth]).float()
    distance = torch.cdist(cells.boxes, expected, p=torch.inf)
    assert float(distance.min(dim=1).values.max()) <= 2
    assert sorted(distance.argmin(dim=1).tolist()) == list(range(len(truth)))
    shown = (cells.to_labels() > 0).numpy()
    assert (shown & (picture > 100)).sum() / (shown | (picture > 100)).sum() > 0.85


@pytest.mark.parametrize("size", [7.5, 120])
def test_far_from_what_the_network_knows(size: float) -> None:
    """The picture's own scale shows nothing that the network knows; another one does."""
    picture = discs([size], 900 if size > 30 else 120)
    assert predictor().find_diameter(picture_of(picture, None)) == pytest.approx(size, rel=0.15)


def test_very_different_sizes() -> None:
    """The median, whatever the others are."""
    picture = discs([14, 15, 16, 40], 500)
    assert predictor().find_diameter(picture_of(picture, None)) == pytest.approx(15.5, rel=0.1)


def test_large_cells_fit_into_the_windows_of_a_slide() -> None:
    """Cells of 120 pixels and, fewer, of 40: no kind is cut more often than the other."""
    picture = discs([120, 40, 120], 3000)
    assert predictor().find_diameter(picture_of(picture, None)) == pytest.approx(120, rel=0.1)


def test_doubtful_cells_count_whatever_the_box_score_threshold_is() -> None:
    picture = picture_of(discs([14, 15, 16, 40], 500), None)
    assert predictor(box_score_threshold=0.9999).find_diameter(picture) == predictor().find_diameter(picture)


def test_one_cell() -> None:
    picture = np.zeros((300, 260), np.uint8)
    picture[100:160, 100:160] = discs([48], 160)[48:108, 48:108]
    cells = predictor()(picture)
    assert len(cells) == 1
    assert cells.diameter == pytest.approx(48, rel=0.1)


def test_no_cell() -> None:
    """Such a picture stays at its own scale."""
    found = predictor()
    cells = found(np.zeros((200, 300), np.uint8))
    assert len(cells) == 0
    assert cells.size == (200, 300)
    assert cells.diameter is None
    assert isinstance(found.detector.model, DiscFinder)
    assert found.detector.model.shapes[-1] == (200, 300)


def test_a_given_diameter_is_taken() -> None:
    found = predictor()
    cells = found(np.zeros((100, 150), np.uint8), diameter=15)
    assert isinstance(found.detector.model, DiscFinder)
    assert found.detector.model.shapes == [(200, 300)]
    assert cells.diameter == 15
    found(np.zeros((100, 150), np.uint8), diameter=1)  # not more than four times
    assert found.detector.model.shapes[-1] == (400, 600)


def test_none_is_the_scale_of_the_picture() -> None:
    found = predictor()
    cells = found(discs([16], 200), diameter="none")
    assert isinstance(found.detector.model, DiscFinder)
    assert found.detector.model.shapes == [(200, 200)]
    assert cells.diameter is None


def test_a_slide_is_measured_in_windows() -> None:
    """All looks together show the network less than the picture at its own scale."""
    picture = discs([16], 2000)
    found = predictor()
    assert found.find_diameter(picture_of(picture, None)) == pytest.approx(16, rel=0.07)
    assert isinstance(found.detector.model, DiscFinder)
    assert sum(h * w for h, w in found.detector.model.shapes) < 2000 * 2000


def test_tiles_are_pixels_of_the_scaled_picture() -> None:
    picture = discs([15], 400)
    found = predictor(tile=256, overlap=64)
    cells = found(picture, diameter=15)
    assert len(cells) == len(regionprops(label(picture > 100)))
    assert isinstance(found.detector.model, DiscFinder)
    assert max(max(size) for size in found.detector.model.shapes) == 256


@pytest.mark.parametrize(("diameter", "seen"), [(200.0, "50"), (5.0, "20"), (120.0, ""), (7.5, ""), (None, "")])
def test_a_diameter_that_the_network_cannot_see_is_said(
    capsys: pytest.CaptureFixture[str], diameter: float | None, seen: str
) -> None:
    """Pictures are rescaled by 1/4 to 4."""
    predictor().plan(picture_of(np.zeros((100, 150), np.uint8), None), diameter)
    warning = capsys.readouterr().err
    if not seen:
        assert warning == ""
    else:
        assert "takes cells of 7.5 to 120 pixels, by rescaling the picture" in warning
        assert f"; those of {diameter:g} pixels it sees as {seen}, not 30\n" in warning


def test_networks_for_the_pictures_own_scale_take_no_diameter() -> None:
    found = predictor(diameter=None)
    assert found(discs([30], 200)).diameter is None
    for diameter in (20.0, "auto"):
        with pytest.raises(InputError, match=r"--diameter is .*not trained for cells of one size; expected none"):
            found(discs([30], 200), diameter=diameter)  # type: ignore[arg-type]


@pytest.mark.parametrize("diameter", [0.0, -3.0, float("nan"), float("inf"), "x", [1], True])
def test_a_diameter_that_is_none(diameter: Any) -> None:
    with pytest.raises(InputError, match=r"diameter is .*; expected above 0 and at most 1000000 or auto or none"):
        predictor()(np.zeros((64, 64), np.uint8), diameter=diameter)
