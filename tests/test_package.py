"""The package as a whole: its imports, its build information, and its wheel under other versions of PyTorch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make wheel`` makes, without installing anything first and without CUDA kernels."""
    folder = tmp_path_factory.mktemp("dist")
    environment = {"MASKRCNN_CUDA": "0", "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    command = ["make", "-o", f"{sys.prefix}/.installed", "wheel", f"VENV={sys.prefix}", f"DIST={folder}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = folder.glob("maskrcnn-*.whl")
    return path


def clean_environment(folder: Path, wheel: Path, *packages: str) -> dict[str, str]:
    """A virtual environment with the wheel and other packages; returns the variables of a process that has no compiler
    on its PATH."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    if packages:
        subprocess.run([*install, *packages], check=True)
    subprocess.run([*install, "--no-deps", str(wheel)], check=True)
    environment = {"PATH": str(folder / "bin")}
    assert not any(shutil.which(name, path=environment["PATH"]) for name in ("g++", "c++", "clang++", "ninja", "nvcc"))
    return environment


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel")
def test_the_wheel_needs_no_compiler(wheel: Path, tmp_path: Path) -> None:
    """With this environment's PyTorch and libraries: kernels are in use, and a picture is predicted."""
    assert re.search(r"manylinux_2_\d+_(x86_64|aarch64)", wheel.name), wheel.name
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "libtorch" in name or "libc10" in name]
    environment = clean_environment(tmp_path / "venv", wheel)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    maskrcnn_command = str(tmp_path / "venv" / "bin" / "maskrcnn")
    run = partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    doctor = run([maskrcnn_command, "doctor"])
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert f"in {site}" in doctor.stdout
    assert torch.__version__ in doctor.stdout
    assert " in use" in doctor.stdout
    assert re.search(r"C\+\+ +not found", doctor.stdout)
    example = site / "maskrcnn" / "pretrained" / "examples" / "fluorescence.png"
    predicted = run([maskrcnn_command, "predict", "--images", str(example), "--out", "found", "--format", "csv"])
    assert predicted.returncode == 0, predicted.stderr
    assert list((tmp_path / "found").rglob("*.csv"))


@pytest.mark.slow
def test_the_wheel_runs_under_another_torch(wheel: Path, tmp_path: Path) -> None:
    """Built against the PyTorch that is installed here, the wheel passes the op tests under 2.13, and under that alone.

    PyTorch 2.13 is fetched, which takes 6 GB of disk and the larger part of the test's time; without a network the
    test fails.
    """
    # only what the ops need, and the tests' own tools
    packages = ("torch==2.13.0", "numpy", "scikit-image", "pytest", "hypothesis", "pycocotools")
    environment = clean_environment(tmp_path / "venv", wheel, *packages)
    python = str(tmp_path / "venv" / "bin" / "python")
    shutil.copytree(ROOT / "tests" / "ops", tmp_path / "tests" / "ops")
    for name in ("__init__.py", "conftest.py", "shapes.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    run = partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    printed = "torch.__version__, maskrcnn.__version__, maskrcnn.__file__, maskrcnn.build_info()"
    versions = f"import torch, maskrcnn; print({printed})"
    where = run([python, "-c", versions]).stdout
    assert where.startswith("2.13")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert where.split()[1] == project["version"] == wheel.name.split("-")[1]
    assert str(tmp_path / "venv") in where
    assert " in use" in where
    tests = run([python, "-m", "pytest", "-q", "tests/ops"])
    shutil.rmtree(tmp_path / "venv")  # pytest would keep its 6 GB
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert " passed" in tests.stdout
