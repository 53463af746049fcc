"""Builds the CUDA kernels for emulation on the CPU (emulation.h) and loads them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import torch

from tests.conftest import ROOT

CSRC = ROOT / "csrc"
LAUNCH = re.compile(r"(\w+)((?:<[\w, ]+>)?)\s*<<<(.*?), 0, launch\.stream\(\)>>>\(", re.DOTALL)
SHARED = re.compile(r"__shared__ ([^;]+?) (\w+)((?:\[[^;]+\])?);")
HERE = Path(__file__).parent


def _for_the_cpu(source: str) -> str:
    """A ``.cu`` file as C++: launches become calls, and the ops are registered for CPU tensors as ``emulated::*``."""
    source = source.replace("STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA", "STABLE_TORCH_LIBRARY_IMPL(emulated, CPU")
    source = source.replace("__CUDA_ARCH__", "MASKRCNN_EMULATED_ARCH")  # PyTorch's headers look at the true one
    # memory for each block in progress, without a constructor, which C++ would call once
    source = SHARED.sub(
        r"using \2_type = \1\3; alignas(16) static char \2_of_all[emulation::kResident][sizeof(\2_type)]; "
        r"auto& \2 = emulation::shared<\2_type>(\2_of_all);",
        source,
    )

    def call(match: re.Match[str]) -> str:
        kernel, arguments, configuration = match.groups()
        depths = [configuration[:i].count("(") - configuration[:i].count(")") for i in range(len(configuration))]
        comma = next(i for i, c in enumerate(configuration) if c == "," and depths[i] == 0)
        sizes = f"{configuration[:comma]}, {configuration[comma + 1 :]}"
        return f'emulation::launch("{kernel}", {sizes}, {kernel}{arguments}, '

    converted = LAUNCH.sub(call, source)
    assert "<<<" not in converted
    assert "__shared__" not in converted
    return converted


def _launch_header(source: str) -> str:
    """``launch.cuh`` without device and stream."""
    constructor = re.compile(r"explicit Launch\(const Tensor& tensor\).*?\n    }\n", re.DOTALL)
    source = constructor.sub("explicit Launch(const Tensor&) {}\n", source)
    source = source.replace("torch::stable::accelerator::DeviceGuard guard_;", "")
    source = source.replace("cudaStream_t stream_;", "cudaStream_t stream_ = nullptr;")
    return source.replace("#include <cuda_runtime.h>", '#include "../emulation.h"')


class Emulator:
    """The emulated ops, and what the emulation saw of the kernels."""

    def __init__(self, library: Path) -> None:
        torch.ops.load_library(library)
        self.ops = torch.ops.emulated
        self._library = ctypes.CDLL(str(library))
        self._library.emulation_race.restype = ctypes.c_char_p
        self._library.emulation_launches.restype = ctypes.c_int64
        self._library.emulation_atomics.restype = ctypes.c_int64
        self._library.emulation_depth.restype = ctypes.c_int

    def race(self) -> str:
        """The first data race since the last call, or nothing."""
        return self._library.emulation_race().decode()

    def launches(self, kernel: str) -> int:
        return self._library.emulation_launches(kernel.encode())

    def depth(self) -> int:
        """The longest chain of blocks in the last launch, of which each waited for the one before."""
        return self._library.emulation_depth()

    def atomics(self) -> int:
        """Atomic changes of memory so far."""
        return self._library.emulation_atomics()

    def run_racy(self, which: int) -> int:
        return self._library.run_racy(which)


def build_emulator(folder: Path) -> Emulator:
    """Compiles the CUDA kernels for the CPU, in ``folder``."""
    (folder / "cuda").mkdir()
    for header in (*CSRC.glob("*.h"), HERE / "emulation.h"):
        shutil.copy(header, folder)
    for header in (CSRC / "cuda").glob("*.cuh"):
        text = header.read_text()
        text = _launch_header(text) if header.name == "launch.cuh" else text
        (folder / "cuda" / header.name).write_text(_for_the_cpu(text))
    kernels = [*(CSRC / "cuda").glob("*.cu"), HERE / "racy_kernels.cpp"]
    sources = []
    for path in kernels:
        sources.append(folder / ("cuda" if path.suffix == ".cu" else ".") / f"{path.stem}.cpp")
        sources[-1].write_text(_for_the_cpu(path.read_text()))
    (folder / "ops.cpp").write_text((CSRC / "ops.cpp").read_text().replace("LIBRARY(maskrcnn", "LIBRARY(emulated"))
    include = Path(torch.__file__).parent / "include"
    flags = f"-std=c++20 -O1 -fPIC -w -ffp-contract=off -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem {include}"
    watched = "-DMASKRCNN_EMULATED_ARCH=900 -fsanitize=thread --param=tsan-distinguish-volatile=1"
    watched += " --param=tsan-instrument-func-entry-exit=0"
    objects, compilers = [], []
    for source in (folder / "ops.cpp", HERE / "emulation.cpp", *sources):
        objects.append(str(folder / f"{source.stem}.o"))
        extra = watched if source in sources else ""
        command = f"g++ {flags} {extra} -I{HERE} -c {source} -o {objects[-1]}".split()
        compilers.append(subprocess.Popen(command))
    assert not any(compiler.wait() for compiler in compilers)
    library = folder / "libemulated.so"
    torch_libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10", "-lpthread", "-Wl,-z,defs"]
    subprocess.run(["g++", "-shared", *objects, "-o", str(library), *torch_libraries], check=True)
    return Emulator(library)
