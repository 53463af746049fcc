"""Who imports whom among the packages: ``python -m tests.imports`` prints it, tests/test_package.py holds it."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "maskrcnn"

LEVELS = (
    ("ops",),
    ("structures",),
    ("data", "model"),
    ("predict",),
    ("evaluation",),
    ("report",),
    ("export", "engine"),
    ("cli", "napari"),
)
"""Imports run from the last level to the first; packages of one level do not know each other."""

ALLOWED = {
    package: {package, *(below for lower in LEVELS[:index] for below in lower)}
    for index, level in enumerate(LEVELS)
    for package in level
}
"""The packages that each one may import."""


def imported_modules(path: Path) -> set[str]:
    """The full names of the modules that a file imports, and of what it imports from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files_of(package: str) -> list[Path]:
    """The Python files of a package, or the one file of a module."""
    folder = PACKAGE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported_packages(package: str) -> set[str]:
    """The other packages of :data:`LEVELS` that a package imports."""
    names = {name for path in files_of(package) for name in imported_modules(path)}
    parts = {name.split(".")[1] for name in names if name.startswith("maskrcnn.")}
    return (parts & set(ALLOWED)) - {package}


def main() -> None:
    for level in reversed(LEVELS):
        for package in level:
            below = [name for lower in reversed(LEVELS) for name in lower if name in imported_packages(package)]
            print(f"{package:11} -> {', '.join(below) or 'PyTorch alone'}")


if __name__ == "__main__":
    main()
