"""The package as a whole: its imports, its build information, and its wheel under other versions of PyTorch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import maskrcnn
from tests.conftest import ROOT
from tests.imports import ALLOWED, files_of, imported_modules, imported_packages


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    """``python -m tests.imports`` shows them."""
    assert imported_packages(package) <= ALLOWED[package]
    for path in files_of(package):
        assert not {name for name in imported_modules(path) if name.split(".")[0] == "torchvision"}, path


def test_an_import_against_the_direction_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "from maskrcnn import engine\nimport maskrcnn.export.coco\nfrom maskrcnn.cli import main\n"
    )
    found = {name.split(".")[1] for name in imported_modules(tmp_path / "a.py") if name.startswith("maskrcnn.")}
    assert found == {"engine", "export", "cli"}


def test_build_info_is_one_line() -> None:
    info = maskrcnn.build_info()
    assert info.count("\n") == 0
    assert "x86-64" in info or "aarch64" in info
    assert "PyTorch" in info


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set")
@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512", "sse9"])
def test_an_instruction_set_can_be_named(name: str) -> None:
    """One that the processor does not have, or that is none, changes nothing."""
    command = [sys.executable, "-c", "import maskrcnn; print(maskrcnn.build_info())"]
    best, asked = (
        subprocess.run(command, env={**os.environ, "MASKRCNN_CPU": value}, capture_output=True, text=True, check=True)
        for value in ("", name)
    )
    order = ("baseline", "avx2", "avx512")
    in_use = [next(each for each in order if f"{each} in use" in run.stdout) for run in (best, asked)]
    lesser = name in order and order.index(name) < order.index(in_use[0])
    assert in_use[1] == (name if lesser else in_use[0])


@pytest.mark.slow
def test_the_wheel_runs_under_another_torch(tmp_path: Path) -> None:
    """Built against the PyTorch that is installed here, the wheel passes the op tests under 2.13, and under that alone.

    PyTorch 2.13 is fetched; without a network the test fails.
    """
    environment = {"MASKRCNN_CUDA": "0", "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    wheel_command = ["pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", *wheel_command], cwd=ROOT, env=environment, check=True)
    (wheel,) = tmp_path.glob("maskrcnn-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet"]
    # only what the ops need: PyTorch 2.13 for the CPU where the index has it, and the tests' own tools
    subprocess.run(
        [*install, "torch==2.13.0", "numpy", "scikit-image", "pytest", "hypothesis", "pycocotools"], check=True
    )
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    shutil.copytree(ROOT / "tests" / "ops", tmp_path / "tests" / "ops")
    for name in ("__init__.py", "conftest.py", "shapes.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    versions = "import torch, maskrcnn; print(torch.__version__, maskrcnn.__version__, maskrcnn.__file__)"
    where = subprocess.run([python, "-c", versions], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert where.startswith("2.13")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert where.split()[1] == project["version"] == wheel.name.split("-")[1]
    assert str(tmp_path / "venv") in where
    tests = subprocess.run(
        [python, "-m", "pytest", "-q", "tests/ops"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert " passed" in tests.stdout
