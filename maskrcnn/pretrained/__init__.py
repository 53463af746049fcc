"""Models that come with the package, by name. A model card beside each, ``NAME.md``, says what it was trained on."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "nuclei"
"""The model that is used where none is named."""


def names() -> list[str]:
    """The names of the models that are there."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.safetensors"))


def find(name: str) -> Path | None:
    """The weights file of a model; None where ``name`` is not the name of one."""
    return Path(__file__).parent / f"{name}.safetensors" if name in names() else None
