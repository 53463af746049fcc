"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from maskrcnn.engine.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_configure() -> None:
    """Processes that tests start are sent SIGINT; they would inherit that a background job of a shell ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if item.get_closest_marker("cuda"):  # not the keyword: the name of the folder is one, too
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real cell pictures (``hw3_sample/``, ``dsb2018/``); tests that ask for it skip where it is not.

    It is taken from ``MASKRCNN_TEST_DATA``, else from ``../shared/data`` beside the checkout.
    """
    path = Path(os.environ.get("MASKRCNN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "hw3_sample").is_dir():
        pytest.skip(f"no real cell pictures at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set in the HW3 layout, small enough to train on in seconds."""
    from maskrcnn.data.synthetic import write_dataset

    root = tmp_path_factory.mktemp("tiny") / "data"
    write_dataset(root, train=10, test=3, size=96, seed=0)
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a ResNet-18 trained for two short epochs: it finds nothing well, but everything is there."""
    from maskrcnn.engine.train import train

    return train(tiny_config(tiny_dataset, tmp_path_factory.mktemp("tiny") / "run"))


def tiny_config(data: Path, out: Path, epochs: int = 2, seed: int = 0) -> TrainConfig:
    from maskrcnn.engine.config import DataOptions, ModelOptions, OptimOptions, TrainConfig

    return TrainConfig(
        # no picture is repeated, so that an epoch has as many crops as there are training pictures
        data_options=DataOptions(data=(data,), crop=64, val_fraction=0.2, repeat_threshold=0.0),
        model_options=ModelOptions(depth=18, mask_loss="dice", roi_batch_per_image=32, detections_per_image=20),
        optim_options=OptimOptions(epochs=epochs, warmup_steps=2),
        out=out,
        device="cpu",
        save_every=3,
        seed=seed,
    )
