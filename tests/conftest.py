"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "cuda" in item.keywords:
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
