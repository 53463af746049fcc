"""Models that come with the package, by name, each with a model card ``NAME.md`` that describes its training."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "nuclei"
"""The default model."""


def names() -> list[str]:
    """The names of the available models."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.safetensors"))


def find(name: str) -> Path | None:
    """The weights file of the model ``name``; None if there is no such model."""
    return Path(__file__).parent / f"{name}.safetensors" if name in names() else None
