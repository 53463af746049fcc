"""Pictures with several channels: prediction uses the channels of training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import maskrcnn
from maskrcnn.checkpoint import load_checkpoint, pack_checkpoint
from maskrcnn.data.coco import CocoDataset, to_coco
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.start import adopt_start
from maskrcnn.engine.train import train
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def two_channels(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set as fluorescence: its red and green as the channels of OME-TIFFs."""
    root = tmp_path_factory.mktemp("channels") / "train"
    for source in sorted((tiny_dataset / "train").iterdir()):
        (root / source.name).mkdir(parents=True)
        planes = np.moveaxis(tifffile.imread(source / "image.tif")[:, :, :2], 2, 0).astype(np.uint16) * 200
        path = root / source.name / "image.tif"
        tifffile.imwrite(path, planes, ome=True, photometric="minisblack", metadata={"axes": "CYX"})
        for path in source.glob("class*.tif"):
            (root / source.name / path.name).symlink_to(path)
    return root


@pytest.fixture(scope="module")
def run(two_channels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(two_channels, tmp_path_factory.mktemp("channels") / "run", epochs=1)
    return train(dataclasses.replace(config, data_options=dataclasses.replace(config.data_options, channels=(1, 0))))


def test_training_asks_for_channels(two_channels: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image\.tif: 2 channels; choose one to three of them with --channels"):
        Hw3Folder(two_channels)[0]
    config = tiny_config(two_channels, tmp_path)
    with pytest.raises(InputError, match="--channels: 4 given"):
        dataclasses.replace(
            config, data_options=dataclasses.replace(config.data_options, channels=(0, 1, 2, 3))
        ).check()


def test_pictures_of_coco_files_too(two_channels: Path, tmp_path: Path) -> None:
    folder = Hw3Folder(two_channels, channels=(1, 0))
    (tmp_path / "cells.json").write_text(json.dumps(to_coco(folder)))
    coco = CocoDataset(tmp_path / "cells.json", two_channels, channels=(1, 0))
    assert torch.equal(coco[0].image, folder[0].image)


@pytest.mark.parametrize("packed", [False, True])
def test_prediction_takes_the_channels_of_the_training(
    run: Path, two_channels: Path, tmp_path: Path, packed: bool
) -> None:
    checkpoint = run / "best.pt"
    if packed:
        checkpoint = tmp_path / "best.safetensors"
        pack_checkpoint(load_checkpoint(run / "best.pt"), checkpoint)
    predictor = maskrcnn.load(checkpoint, device="cpu")
    trained = Hw3Folder(two_channels, channels=(1, 0))
    path = two_channels / trained.names[0] / "image.tif"
    shown = predictor.read(path)
    assert torch.equal(shown, trained[0].image)
    assert torch.equal(shown, predictor.read(np.moveaxis(tifffile.imread(path), 0, 2)))
    assert not shown[:, :, 2].any()
    assert not torch.equal(shown[:, :, 0], shown[:, :, 1])


def test_infer_takes_them_unless_told_otherwise(run: Path, two_channels: Path, tmp_path: Path) -> None:
    picture = next(two_channels.iterdir()) / "image.tif"
    for name, channels in (("default", None), ("other", (0,))):
        out = tmp_path / name
        config = InferConfig(run / "best.pt", images=(picture,), out=out, device="cpu", channels=channels)
        assert not infer(config).failures
        assert json.loads((out / "infer.json").read_text())["channels"] == ([1, 0] if channels is None else [0])


def test_fine_tuning_keeps_them_or_takes_others(run: Path) -> None:
    start = TrainConfig(from_=str(run / "best.pt"))
    assert adopt_start(start).data_options.channels == (1, 0)
    others = dataclasses.replace(start, data_options=dataclasses.replace(start.data_options, channels=(3,)))
    assert adopt_start(others).data_options.channels == (3,)


def test_options_of_earlier_runs() -> None:
    """The width of the pyramid was called channels."""
    options = TrainConfig().to_dict()
    options["model_options"]["channels"] = 64
    del options["model_options"]["pyramid_channels"]
    assert TrainConfig.from_dict(options).model_options.pyramid_channels == 64
