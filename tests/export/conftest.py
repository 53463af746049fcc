"""Fixtures of the tests of inference runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskrcnn.data.picture import Picture
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections
from tests.export.cells import two_cells


@pytest.fixture(scope="session")
def results(tiny_run: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the three test pictures of the tiny data set; not to be changed."""
    out = tmp_path_factory.mktemp("predictions")
    outcome = infer(InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=out, device="cpu"))
    assert not outcome.failures
    return outcome.folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs decode their pictures, but find the same two cells in each: for tests of files, not of the network."""

    def predict(_: Predictor, picture: Picture, *__: object) -> Detections:
        picture.read(0, 0, *picture.size)
        return two_cells().resized(picture.size)

    monkeypatch.setattr(Predictor, "predict", predict)
