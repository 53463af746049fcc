"""The notebooks as the site shows them; ``make docs`` checks the links of all pages, ``make notebooks`` runs these."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST_PICTURE = 300_000
"""Size in bytes up to which a picture is kept in git."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_printed(path: Path) -> None:
    """Every cell ran, in order and without an error; pictures are small, and nothing names the machine."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs: list[dict[str, Any]] = [output for cell in cells for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    shown = [item for output in outputs for item in output.get("data", {}).items()]
    pictures = [data for kind, data in shown if kind.startswith("image/")]
    assert pictures
    assert all(len(base64.b64decode("".join(data))) <= LARGEST_PICTURE for data in pictures)
    printed = json.dumps([output.get("text", "") for output in outputs])
    assert not any(folder in printed for folder in ("/tmp/", "/home/", "/root/", str(ROOT)))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 2
