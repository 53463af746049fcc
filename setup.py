"""Builds the kernels: ``python setup.py build_ext [--inplace]``, or through pip. Everything else is in pyproject.toml.

Two shared libraries on PyTorch's stable ABI, so that one binary serves every PyTorch from 2.11 on, and a small pybind11
module that tells what was built. They go to ``maskrcnn/lib/`` and ``maskrcnn/``.

Environment:
    MASKRCNN_CUDA        1: build the CUDA kernels or fail; 0: do not; unset: where nvcc is found
    MASKRCNN_CUDA_ARCHS  compute capabilities, default "75;80;86;90;100;120"
    MASKRCNN_SANITIZE    1: address and undefined-behaviour sanitizers in the CPU library
    CXX                  C++ compiler, default g++ (tested: GCC 11 and 12, clang 14 and 19)
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the oldest PyTorch that the binary runs under: 2.11
DEFAULT_ARCHS = "75;80;86;90;100;120"  # 8.9 runs what is compiled for 8.6
VECTORISED = (
    "conv3x3",
    "group_norm",
    "nms",
    "roi_align",
)  # compiled for each instruction set (csrc/cpu/instruction_set.h)


class BuildKernels(build_ext):
    """Writes a ninja file and runs it, so that only changed files are compiled."""

    def run(self) -> None:
        import torch

        self.torch = Path(torch.__file__).parent
        self.torch_version = torch.__version__
        package = ROOT / "maskrcnn" if self.inplace else ROOT / self.build_lib / "maskrcnn"
        sanitize = os.environ.get("MASKRCNN_SANITIZE") == "1"
        objects = ROOT / "build" / ("sanitize" if sanitize else "kernels")
        for folder in (objects, package / "lib"):
            folder.mkdir(parents=True, exist_ok=True)
        nvcc = self.find_nvcc()
        archs = os.environ.get("MASKRCNN_CUDA_ARCHS", DEFAULT_ARCHS).split(";") if nvcc else []
        lines = self.cpu_rules(package, objects, sanitize)
        lines += self.info_rules(package, objects, archs)
        if nvcc:
            lines += self.cuda_rules(nvcc, archs, package, objects)
        (objects / "build.ninja").write_text("\n".join(lines) + "\n")
        ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if ninja is None:
            sys.exit("error: ninja is missing; pip install ninja")
        built = subprocess.run([ninja, "-C", str(objects), *(["-v"] if self.verbose > 1 else [])], check=False)
        if built.returncode != 0:
            sys.exit("error: the kernels did not compile; see the messages above")
        print(f"built {package / 'lib'}: {library_names(archs)}; CPU {cpu_archs()}; CUDA {cuda_archs(archs)}")

    def find_nvcc(self) -> Path | None:
        """The toolkit's compiler, or pip's (nvidia-cuda-nvcc); None if the CUDA kernels are not to be built."""
        wanted = os.environ.get("MASKRCNN_CUDA")
        if wanted not in (None, "", "0", "1"):
            sys.exit(f"error: MASKRCNN_CUDA is {wanted}; expected 0 or 1")
        if wanted == "0":
            return None
        home = os.environ.get("CUDA_HOME")
        candidates = [Path(home) / "bin" / "nvcc"] if home else []
        if found := shutil.which("nvcc"):
            candidates.append(Path(found))
        candidates += sorted((self.torch.parent / "nvidia").glob("cu*/bin/nvcc"))
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        if wanted == "1":
            sys.exit("error: MASKRCNN_CUDA is 1, but nvcc is not there; install the CUDA toolkit or nvidia-cuda-nvcc")
        return None

    def cpu_rules(self, package: Path, objects: Path, sanitize: bool) -> list[str]:
        compiler = os.environ.get("CXX", "g++")
        # Not -march=native: the binary must run everywhere; csrc/cpu/register.cpp chooses at run time.
        flags = (
            "-std=c++17 -O3 -fPIC -Wall -Wno-psabi -Wno-deprecated-declarations -fvisibility=hidden "
            f"{TORCH_TARGET} -isystem {self.torch}/include"
        )
        if sanitize:
            flags += " -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
        rules = [
            "ninja_required_version = 1.5",
            "rule cpu",
            f"  command = {compiler} {flags} $flags -MMD -MF $out.d -c $in -o $out",
            "  description = C++ $in",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {compiler} -shared $in -o $out $libs {'-fsanitize=address,undefined' if sanitize else ''}",
            "  description = link $out",
        ]
        outputs = []
        for source in [ROOT / "csrc" / "ops.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]:
            # NMS and matching depend on the last bit of an IoU; RoIAlign and convolutions may use fused multiply-adds.
            contract = f"-ffp-contract={'fast' if source.stem in ('conv3x3', 'group_norm', 'roi_align') else 'off'}"
            for name in instruction_sets() if source.stem in VECTORISED else [""]:
                outputs.append(objects / f"cpu_{source.stem}{name and '_' + name}.o")
                rules.append(f"build {outputs[-1]}: cpu {source}")
                rules.append(
                    f"  flags = {contract}" + (f" -DMASKRCNN_SET={name} -DMASKRCNN_SET_{name}" if name else "")
                )
        library = package / "lib" / "libmaskrcnn_cpu.so"
        rules.append(f"build {library}: link {' '.join(map(str, outputs))}")
        rules.append(f"  libs = -L{self.torch}/lib -ltorch_cpu -lc10")
        return rules

    def cuda_rules(self, nvcc: Path, archs: list[str], package: Path, objects: Path) -> list[str]:
        toolkit = next(iter(sorted((self.torch.parent / "nvidia").glob("cu*/include"))), None)
        include = f"-isystem {toolkit}" if toolkit else ""
        targets = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in archs)
        targets += f" -gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"  # PTX for what comes later
        flags = (
            f"-std=c++17 -O3 --fmad=false -Xcompiler -fPIC,-fvisibility=hidden -DUSE_CUDA {TORCH_TARGET} {targets} "
            f"-isystem {self.torch}/include {include} --expt-relaxed-constexpr -diag-suppress 186"
        )
        rules = [
            "rule cuda",
            f"  command = {nvcc} {flags} -MMD -MF $out.d -c $in -o $out",
            "  description = CUDA $in",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule linkcuda",
            f"  command = {nvcc} -shared -cudart static $in -o $out -L{self.torch}/lib -ltorch_cuda -ltorch_cpu -lc10",
            "  description = link $out",
        ]
        outputs = []
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            outputs.append(objects / f"cuda_{source.stem}.o")
            rules.append(f"build {outputs[-1]}: cuda {source}")
        library = package / "lib" / "libmaskrcnn_cuda.so"
        return [*rules, f"build {library}: linkcuda {' '.join(map(str, outputs))}"]

    def info_rules(self, package: Path, objects: Path, archs: list[str]) -> list[str]:
        import pybind11

        compiler = os.environ.get("CXX", "g++")
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )[0]
        header = objects / "build_info.h"
        strings = {
            "LIBRARIES": library_names(archs),
            "CPU_ARCHS": cpu_archs(),
            "CUDA_ARCHS": cuda_archs(archs),
            "COMPILER": version,
            "TORCH": self.torch_version,
        }
        text = "".join(f'#define MASKRCNN_{name} "{value}"\n' for name, value in strings.items())
        if not header.is_file() or header.read_text() != text:
            header.write_text(text)
        python = sysconfig.get_paths()["include"]
        module = package / f"_build_info{sysconfig.get_config_var('EXT_SUFFIX')}"
        flags = (
            f"-std=c++17 -O2 -shared -fPIC -fvisibility=hidden -include {header} -I{pybind11.get_include()} -I{python}"
        )
        source = ROOT / "csrc" / "build_info.cpp"
        return [
            "rule info",
            f"  command = {compiler} {flags} $in -o $out",
            "  description = C++ $in",
            f"build {module}: info {source} | {header} {ROOT / 'csrc' / 'cpu' / 'instruction_set.h'}",
        ]

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "maskrcnn"
        return [str(path) for pattern in ("lib/*.so", "*.so") for path in package.glob(pattern)]


def library_names(archs: list[str]) -> str:
    return "CPU and CUDA" if archs else "CPU"


def instruction_sets() -> list[str]:
    """Those that csrc/cpu/begin_set.h knows for this kind of processor."""
    return ["baseline", "avx2", "avx512"] if platform.machine() in ("x86_64", "AMD64") else ["baseline"]


def cpu_archs() -> str:
    machine = "x86-64" if len(instruction_sets()) > 1 else platform.machine()
    return f"{machine} ({', '.join(instruction_sets())})"


def cuda_archs(archs: list[str]) -> str:
    return " ".join(f"sm_{a}" for a in archs) if archs else "not built"


# A placeholder for everything that BuildKernels makes: it tells setuptools that the wheel is platform-specific.
setup(ext_modules=[Extension("maskrcnn._build_info", ["csrc/build_info.cpp"])], cmdclass={"build_ext": BuildKernels})
