"""The CPU kernels compile without a warning under the compilers that their users have; those that are missing are
skipped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

COMPILERS = {
    "g++": "x86-64",
    "g++-11": "x86-64",
    "clang++-14": "x86-64",
    "clang++-19": "x86-64",
    "clang++-22": "x86-64",
    "aarch64-linux-gnu-g++": "arm64",
}
SETS = {"x86-64": ("baseline", "avx2", "avx512"), "arm64": ("baseline",)}
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-Wall",
    "-Wno-psabi",
    "-Wno-deprecated-declarations",  # inside of libstdc++, as clang 19 sees it
    "-Werror",
    "-fvisibility=hidden",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]


def objects(machine: str) -> list[tuple[Path, list[str]]]:
    """The files to compile for a kind of processor, and the definitions that name their instruction set."""
    sources = [ROOT / "csrc" / "ops.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    found: list[tuple[Path, list[str]]] = []
    for source in sources:
        sets = SETS[machine] if "begin_set.h" in source.read_text() else (None,)
        found += [
            (source, [] if name is None else [f"-DMASKRCNN_SET={name}", f"-DMASKRCNN_SET_{name}"]) for name in sets
        ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_kernels_compile(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    include = ["-isystem", str(Path(torch.__file__).parent / "include")]
    for source, definitions in objects(COMPILERS[compiler]):
        command = [compiler, *FLAGS, *include, *definitions, "-c", str(source), "-o", str(tmp_path / "a.o")]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        assert compiled.returncode == 0, f"{source.name} {definitions}: {compiled.stderr[:3000]}"
