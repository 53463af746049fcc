"""The model that comes with the package: it exists, is small and portable, and finds nuclei."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.draw import disk

import maskrcnn
from maskrcnn import pretrained
from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.predict.predictor import Predictor

EXAMPLES = Path(pretrained.__file__).parent / "examples"


@pytest.fixture(scope="module")
def nuclei() -> Predictor:
    return maskrcnn.load(device="cpu")


def test_it_is_small_and_names_no_place() -> None:
    path = pretrained.find(pretrained.DEFAULT)
    assert path is not None
    assert path.stat().st_size < 25e6
    config = load_checkpoint(pretrained.DEFAULT)["config"]
    assert config["out"] is None
    assert all("/" not in name for name in config["data_options"]["data"])
    card = path.with_suffix(".md").read_text()
    assert all(
        words in card for words in ("CC BY 4.0", "CC0", "10.1109/TMI.2018.2865709", "10.1038/s41597-024-03117-2")
    )


@pytest.mark.parametrize(
    ("name", "least", "most", "smallest", "largest"),
    [("fluorescence", 50, 62, 15, 22), ("tissue", 75, 115, 12, 19), ("smear", 32, 50, 17, 26)],
)
def test_it_finds_the_nuclei_of_the_examples(
    nuclei: Predictor, name: str, least: int, most: int, smallest: float, largest: float
) -> None:
    """As many as a person counts, give or take those at the border and the blurred ones, and of their size."""
    cells = nuclei(EXAMPLES / f"{name}.png").filter(nuclei.score_threshold)
    assert least <= len(cells) <= most
    assert cells.diameter is not None
    assert smallest < cells.diameter < largest


def test_it_finds_them_at_any_magnification(nuclei: Predictor) -> None:
    """Enlarged and reduced, the picture has as many nuclei, twice and half as large."""
    picture = Image.open(EXAMPLES / "fluorescence.png")
    found = {}
    for factor in (0.5, 1.0, 2.0):
        size = (round(picture.width * factor), round(picture.height * factor))
        cells = nuclei(np.asarray(picture.resize(size, Image.Resampling.LANCZOS)))
        found[factor] = (len(cells.filter(nuclei.score_threshold)), cells.diameter)
    count, diameter = found[1.0]
    for factor, (own_count, own_diameter) in found.items():
        assert own_count == pytest.approx(count, abs=6)
        assert own_diameter == pytest.approx(diameter * factor, rel=0.15)


def test_it_finds_all_nuclei_of_a_crowd(nuclei: Predictor) -> None:
    """Cells of 22 pixels, 24 apart: one per 576 pixels, at the network's own scale."""
    rng = np.random.default_rng(0)
    picture = np.zeros((492, 492), np.float32)
    for y, x in itertools.product(range(18, 492, 24), repeat=2):
        at = (y + rng.uniform(-1, 1), x + rng.uniform(-1, 1))
        picture[disk(at, rng.uniform(10, 11), shape=picture.shape)] = rng.uniform(120, 180)
    picture = ndimage.gaussian_filter(picture, 1) + rng.normal(0, 4, picture.shape)
    cells = nuclei(picture.clip(0, 255).astype(np.uint8), diameter="none").filter(nuclei.score_threshold)
    assert len(cells) == pytest.approx(20 * 20, abs=4)


def test_an_empty_picture_has_no_nuclei(nuclei: Predictor) -> None:
    cells = nuclei(np.zeros((128, 160), np.uint8))
    assert len(cells.filter(nuclei.score_threshold)) == 0
