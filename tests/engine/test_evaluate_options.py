"""The options of ``maskrcnn evaluate`` that say what the pictures are."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from maskrcnn.engine.evaluate import EvaluateConfig, evaluate_checkpoint
from maskrcnn.errors import InputError


@pytest.fixture
def pictures(tiny_dataset: Path, tmp_path: Path) -> Path:
    """Two pictures with pixels of half a micrometre."""
    for folder in sorted((tiny_dataset / "train").iterdir())[:2]:
        copy = shutil.copytree(folder, tmp_path / "pictures" / folder.name) / "image.tif"
        half = {"resolution": (2, 2), "imagej": True, "metadata": {"unit": "um"}}
        tifffile.imwrite(copy, tifffile.imread(copy), **half)
    return tmp_path / "pictures"


def test_a_diameter_in_micrometres(tiny_run: Path, pictures: Path) -> None:
    config = EvaluateConfig(tiny_run / "best.pt", val=(pictures,), device="cpu", diameter=16.0)
    expected = evaluate_checkpoint(config)
    assert evaluate_checkpoint(dataclasses.replace(config, diameter="8um")) == expected
    assert evaluate_checkpoint(dataclasses.replace(config, diameter="4um", pixel_size=0.25)) == expected
    for diameter in (16.0, None, "auto"):
        with pytest.raises(InputError, match=r"--pixel-size is 0\.25; expected none without a --diameter such as 8um"):
            evaluate_checkpoint(dataclasses.replace(config, diameter=diameter, pixel_size=0.25))


def test_pictures_of_more_channels_than_those_of_training(tiny_run: Path, pictures: Path) -> None:
    config = EvaluateConfig(tiny_run / "best.pt", val=(pictures,), device="cpu", diameter=16.0)
    expected = evaluate_checkpoint(config)
    for path in pictures.glob("*/image.tif"):
        planes = np.moveaxis(tifffile.imread(path), 2, 0)
        other = np.full_like(planes[0], 7)
        tifffile.imwrite(path, np.stack([other, *planes]), photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(InputError, match="4 channels; choose one to three of them with --channels"):
        evaluate_checkpoint(config)
    assert evaluate_checkpoint(dataclasses.replace(config, channels=(1, 2, 3))) == expected
