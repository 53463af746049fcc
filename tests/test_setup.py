"""setup.py: which compilers it takes, what it asks of them, and what it says when they are missing or fail."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from setuptools import Distribution

from tests.conftest import ROOT

OF_12_0 = "50 52 53 60 61 62 70 72 75 80 86 87 89 90"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """setup.py for a folder with spaces in its name, that holds two of the sources; no variable is set."""
    specification = importlib.util.spec_from_file_location("setup_of_the_kernels", ROOT / "setup.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    folder = tmp_path / "a folder: its sources"
    for name in ("ops.cpp", "build_info.cpp", "cpu/instruction_set.h", "cuda/nms.cu"):
        (folder / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "csrc" / name, folder / "csrc" / name)
    monkeypatch.setattr(module, "ROOT", folder)
    for name in ("MASKRCNN_CUDA", "MASKRCNN_CUDA_ARCHS", "CUDA_HOME", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return module


def command(module: Any, *commands: str) -> Any:
    """``python setup.py build_ext --inplace`` if that is the command, else as pip runs it."""
    distribution = Distribution()
    distribution.commands = list(commands)
    build = module.BuildKernels(distribution)
    build.inplace = 1
    return build


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for nvcc 12.0, and cannot compile anything."""
    path = tmp_path / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    listed = "".join(f"echo compute_{arch}; " for arch in OF_12_0.split())
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && {{ {listed} exit 0; }}\necho "fatal error: too old"; exit 1'
    )
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return path


def compile_nothing(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the CPU."""
    monkeypatch.setattr(module.BuildKernels, "cpu_rules", lambda build: [])
    monkeypatch.setattr(module.BuildKernels, "info_rules", lambda build, archs: [])


def notes(module: Any) -> str:
    return (module.ROOT / "maskrcnn" / "lib" / "not_built.txt").read_text()


def test_an_old_nvcc_compiles_for_the_architectures_that_it_knows(module: Any, nvcc: Path) -> None:
    build = command(module)
    build.find_tools()
    assert build.find_nvcc() == (str(nvcc), ["75", "80", "86", "90"])


def test_architectures_that_are_named_must_be_known(module: Any, nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = command(module)
    build.find_tools()
    monkeypatch.setenv("MASKRCNN_CUDA_ARCHS", "80;90a")
    assert build.find_nvcc()[1] == ["80", "90a"]
    monkeypatch.setenv("MASKRCNN_CUDA_ARCHS", "90;120")
    with pytest.raises(SystemExit, match=f"error: MASKRCNN_CUDA_ARCHS has '120'; {nvcc} knows 50;52;"):
        build.find_nvcc()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'libcuda is broken' >&2; exit 1", "--list-gpu-arch: libcuda is broken"),
        ("exit 127", "--list-gpu-arch: Command"),
        ("echo compute_50", "knows 50; expected one of 75;80;86;90;100;120"),
        (
            "[ $1 = --list-gpu-arch ] && echo compute_90 || { echo 'fatal error: too old'; exit 1; }",
            "fatal error: too old",
        ),
    ],
)
def test_an_nvcc_that_fails_leaves_the_cpu_kernels(
    module: Any, nvcc: Path, script: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One warning with the reason, which the package finds too; an error where CUDA is demanded."""
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    compile_nothing(module, monkeypatch)
    command(module, "build_ext").run()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert "MASKRCNN_CUDA=1 makes this an error" in warnings[0]
    assert notes(module).startswith("CUDA: ")
    assert reason in notes(module)
    monkeypatch.setenv("MASKRCNN_CUDA", "1")
    with pytest.raises(SystemExit, match="error: MASKRCNN_CUDA is 1, but the CUDA kernels were not built: "):
        command(module).run()


def test_without_nvcc_nothing_is_said(
    module: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Most machines have none; the reason is kept for one that has a GPU."""
    compile_nothing(module, monkeypatch)
    monkeypatch.setenv("MASKRCNN_CUDA", "0")
    command(module).run()
    assert "warning" not in capsys.readouterr().err
    assert notes(module) == "CUDA: MASKRCNN_CUDA was 0\n"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "/nowhere"}, "no C++ compiler: g++ --version: No such file or directory; install one"),
        ({"CXX": "/nowhere/clang++ -O1"}, "no C++ compiler: /nowhere/clang++ -O1 --version: No such file"),
        ({"CXX": "false"}, "no C++ compiler: false"),
    ],
)
def test_without_a_compiler_pip_goes_on(
    module: Any,
    environment: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """``pip install`` warns and leaves the reason; ``python setup.py build_ext`` and MASKRCNN_CUDA=1 fail."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stale = module.ROOT / "maskrcnn" / "lib" / "libmaskrcnn_cpu.so"
    stale.parent.mkdir(parents=True)
    stale.touch()
    command(module, "bdist_wheel").run()
    assert (
        f"warning: maskrcnn will run on its PyTorch references, which are slower: {reason}" in capsys.readouterr().err
    )
    assert notes(module).startswith(f"CPU: {reason}")
    assert not stale.exists()
    with pytest.raises(SystemExit, match="error: the kernels were not built: no C"):
        command(module, "build_ext").run()
    monkeypatch.setenv("MASKRCNN_CUDA", "1")
    with pytest.raises(SystemExit, match="error: the kernels were not built: no C"):
        command(module, "bdist_wheel").run()


def test_ninja_is_missed_by_name(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name == "ninja" else which(name))
    command(module).run()
    assert notes(module) == "CPU: ninja was not found; pip install ninja\n"


def test_sources_that_do_not_compile(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKRCNN_CUDA", "0")
    (module.ROOT / "csrc" / "ops.cpp").write_text("#error too old a compiler\n")
    command(module).run()
    assert notes(module).startswith("CPU: the CPU kernels did not compile: ")
    assert "too old a compiler" in notes(module)


def test_a_folder_with_spaces_in_its_name(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object, its library and the module are made there, and nothing is compiled again if nothing has changed."""
    monkeypatch.setenv("MASKRCNN_CUDA", "0")
    for _ in range(2):
        command(module, "build_ext").run()
        made = [
            module.ROOT / "maskrcnn" / "lib" / "libmaskrcnn_cpu.so",
            *(module.ROOT / "maskrcnn").glob("_build_info*.so"),
        ]
        assert len(made) == 2
        times = [path.stat().st_mtime_ns for path in made]
    assert times == [path.stat().st_mtime_ns for path in made]
    assert notes(module) == "CUDA: MASKRCNN_CUDA was 0\n"


@pytest.mark.parametrize("machine", ["arm64", "x86_64"])
def test_rules_for_macos(module: Any, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbols of Python and PyTorch are looked up when the library is loaded; no option that Apple's clang lacks."""
    build = command(module)
    build.find_tools()
    build.package = build.objects = module.ROOT / "build"
    build.sanitize = False
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    shutil.copy(ROOT / "csrc" / "cpu" / "nms.cpp", module.ROOT / "csrc" / "cpu")
    rules = "\n".join(build.cpu_rules())
    assert "-shared -undefined dynamic_lookup $in" in rules
    assert "openmp" not in rules
    assert "-march" not in rules
    assert ("MASKRCNN_SET_avx512" in rules) == (machine == "x86_64")
    assert module.cpu_archs().startswith("x86-64" if machine == "x86_64" else "arm64 (baseline)")


def test_windows_is_pointed_to_wsl(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    command(module).run()
    assert notes(module) == "CPU: they cannot be built on Windows; use WSL 2\n"


@pytest.mark.parametrize("path", ["/a/b c/d.o", "/a:b/c$d"])
def test_paths_are_quoted(module: Any, path: str) -> None:
    escaped = module.in_ninja(Path(path))
    assert escaped.replace("$ ", " ").replace("$:", ":").replace("$$", "$") == path
    assert os.fspath(path) in module.in_shell(path).replace("$$", "$").strip("'")
