"""Builds the kernels: ``python setup.py build_ext [--inplace]``, or through pip. Everything else is in pyproject.toml.

Two shared libraries on PyTorch's stable ABI, so that one binary serves every PyTorch from 2.11 on, and a small pybind11
module that tells what was built. They go to ``maskrcnn/lib/`` and ``maskrcnn/``.

Where a compiler is missing or fails, ``pip install`` goes on: the package runs on its PyTorch references, and says why
(``lib/not_built.txt`` keeps the reason). ``python setup.py build_ext`` without the CPU kernels is an error.

Environment (docs/install.md):
    MASKRCNN_CUDA        1: build the CUDA kernels or fail; 0: do not; unset: where nvcc is found
    MASKRCNN_CUDA_ARCHS  compute capabilities, default "75;80;86;90;100;120", as far as nvcc knows them
    MASKRCNN_SANITIZE    1: address and undefined-behaviour sanitizers in the CPU library
    CXX                  C++ compiler, default g++, else c++ or clang++
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # the oldest PyTorch that the binary runs under: 2.11
DEFAULT_ARCHS = "75;80;86;90;100;120"  # 8.9 runs what is compiled for 8.6
VECTORISED = ("conv3x3", "group_norm", "nms", "roi_align")  # for each instruction set (csrc/cpu/instruction_set.h)
HOW_TO_GET_A_COMPILER = {
    "linux": "install one (apt install g++, dnf install gcc-c++, conda install cxx-compiler)",
    "darwin": "install Apple's (xcode-select --install)",
}


class NotBuilt(Exception):
    """Why a library was not built, in one line."""


class BuildKernels(build_ext):
    """Writes a ninja file and runs it, so that only changed files are compiled."""

    def run(self) -> None:
        self.package = ROOT / "maskrcnn" if self.inplace else ROOT / self.build_lib / "maskrcnn"
        self.sanitize = os.environ.get("MASKRCNN_SANITIZE") == "1"
        self.objects = ROOT / "build" / ("sanitize" if self.sanitize else "kernels")
        for folder in (self.objects, self.package / "lib"):
            folder.mkdir(parents=True, exist_ok=True)
        self.nvcc: str | None = None
        missing = {}
        try:
            self.find_tools()
            self.compile("cpu", self.cpu_rules())
            archs: list[str] = []
            try:
                nvcc, archs = self.find_nvcc()
                self.compile("cuda", self.cuda_rules(nvcc, archs))
            except NotBuilt as error:
                archs = []
                missing["CUDA"] = str(error)
            self.compile("info", self.info_rules(archs))
            libraries = "CPU and CUDA" if archs else "CPU"
            print(f"built {self.package / 'lib'}: {libraries}; CPU {cpu_archs()}; CUDA {cuda_archs(archs)}")
        except NotBuilt as error:
            missing = {"CPU": str(error)}
        self.note(missing)

    def note(self, missing: dict[str, str]) -> None:
        """Leave the reasons where the package finds them, and no library of an earlier build; fail or warn."""
        for name in missing:
            (self.package / "lib" / f"libmaskrcnn_{name.lower()}.so").unlink(missing_ok=True)
        if "CPU" in missing:
            for module in self.package.glob("_build_info*"):
                module.unlink()
        lines = [f"{name}: {reason}\n" for name, reason in missing.items()]
        (self.package / "lib" / "not_built.txt").write_text("".join(lines))
        wanted = os.environ.get("MASKRCNN_CUDA")
        if "CPU" in missing:
            if wanted == "1" or "build_ext" in self.distribution.commands:
                sys.exit(f"error: the kernels were not built: {missing['CPU']}")
            warn(f"maskrcnn will run on its PyTorch references, which are slower: {missing['CPU']}")
        elif "CUDA" in missing and wanted == "1":
            sys.exit(f"error: MASKRCNN_CUDA is 1, but the CUDA kernels were not built: {missing['CUDA']}")
        elif "CUDA" in missing and self.nvcc:
            how = "MASKRCNN_CUDA=1 makes this an error, MASKRCNN_CUDA=0 skips it"
            warn(f"only the CPU kernels were built: {missing['CUDA']} ({how})")

    def find_tools(self) -> None:
        wanted = os.environ.get("MASKRCNN_CUDA")
        if wanted not in (None, "", "0", "1"):
            sys.exit(f"error: MASKRCNN_CUDA is {wanted}; expected 0 or 1")
        if sys.platform == "win32":
            raise NotBuilt("they cannot be built on Windows; use WSL 2")
        try:
            import pybind11
            import torch
        except ImportError as error:
            raise NotBuilt(f"{error}; pip install torch pybind11 before --no-build-isolation") from error
        self.torch, self.torch_version = Path(torch.__file__).parent, torch.__version__
        self.pybind11 = pybind11.get_include()
        default = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), "g++")
        self.compiler = os.environ.get("CXX") or default
        try:
            version = run([*shlex.split(self.compiler), "--version"])
        except NotBuilt as error:
            how = HOW_TO_GET_A_COMPILER.get(sys.platform, "install one")
            raise NotBuilt(f"no C++ compiler: {error}; {how}, or name it in CXX") from error
        self.compiler_version = next(iter(version.splitlines()), self.compiler)
        beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self.ninja = shutil.which("ninja", path=beside_python)
        if self.ninja is None:
            raise NotBuilt("ninja was not found; pip install ninja")

    def compile(self, name: str, rules: Sequence[str]) -> None:
        """Write the rules to a ninja file and run it; raises NotBuilt with the first error."""
        (self.objects / f"{name}.ninja").write_text("\n".join(["ninja_required_version = 1.5", *rules]) + "\n")
        command = [self.ninja, "-C", str(self.objects), "-f", f"{name}.ninja", *(["-v"] if self.verbose > 1 else [])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.strip())
        if process.returncode != 0:
            first = next((line for line in lines if "error" in line.lower() and not line.startswith("FAILED")), "")
            what = {"cpu": "the CPU kernels", "cuda": "the CUDA kernels", "info": "csrc/build_info.cpp"}[name]
            raise NotBuilt(f"{what} did not compile: {first or lines[-1]}"[:400])

    def find_nvcc(self) -> tuple[str, list[str]]:
        """The toolkit's compiler, or pip's (nvidia-cuda-nvcc), and the compute capabilities to compile for."""
        if os.environ.get("MASKRCNN_CUDA") == "0":
            raise NotBuilt("MASKRCNN_CUDA was 0")
        home, site = os.environ.get("CUDA_HOME"), self.torch.parent / "nvidia"
        candidates = [Path(home) / "bin" / "nvcc"] if home else []
        candidates += [Path(found) for found in [shutil.which("nvcc")] if found]
        candidates += sorted([*site.glob("cu*/bin/nvcc"), *site.glob("cuda_nvcc/bin/nvcc")])
        nvcc = next((str(candidate) for candidate in candidates if candidate.is_file()), None)
        if nvcc is None:
            raise NotBuilt("nvcc was not found; install the CUDA toolkit, or pip install nvidia-cuda-nvcc")
        self.nvcc = nvcc
        listed = run([nvcc, "--list-gpu-arch"])
        known = [line.removeprefix("compute_") for line in listed.split()]
        asked = os.environ.get("MASKRCNN_CUDA_ARCHS")
        archs = (asked or DEFAULT_ARCHS).split(";")
        unknown = [arch for arch in archs if arch.rstrip("af") not in known]
        if asked and unknown:
            sys.exit(f"error: MASKRCNN_CUDA_ARCHS has {unknown[0]!r}; {nvcc} knows {';'.join(known)}")
        archs = [arch for arch in archs if arch not in unknown]
        if not archs:
            raise NotBuilt(f"{nvcc} knows {';'.join(known) or 'nothing'}; expected one of {DEFAULT_ARCHS}")
        return nvcc, archs

    def cpu_rules(self) -> list[str]:
        # Not -march=native: the binary must run everywhere; csrc/cpu/register.cpp chooses at run time.
        flags = (
            "-std=c++17 -O3 -fPIC -Wall -Wno-psabi -Wno-deprecated-declarations -fvisibility=hidden "
            f"{TORCH_TARGET} -isystem {in_shell(self.torch / 'include')}"
        )
        if self.sanitize:
            flags += " -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
        rules = [
            "rule cpu",
            f"  command = {self.compiler} {flags} $flags -MMD -MF $out.d -c $in -o $out",
            "  description = C++ $in",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {self.compiler} {shared()} $in -o $out -L{in_shell(self.torch / 'lib')} -ltorch_cpu -lc10"
            + (" -fsanitize=address,undefined" if self.sanitize else ""),
            "  description = link $out",
        ]
        outputs = []
        for source in [ROOT / "csrc" / "ops.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]:
            # NMS and matching depend on the last bit of an IoU; RoIAlign and convolutions may use fused multiply-adds.
            contract = f"-ffp-contract={'fast' if source.stem in ('conv3x3', 'group_norm', 'roi_align') else 'off'}"
            for name in instruction_sets() if source.stem in VECTORISED else [""]:
                outputs.append(self.objects / f"cpu_{source.stem}{name and '_' + name}.o")
                rules.append(build(outputs[-1], "cpu", source))
                rules.append(
                    f"  flags = {contract}" + (f" -DMASKRCNN_SET={name} -DMASKRCNN_SET_{name}" if name else "")
                )
        return [*rules, build(self.package / "lib" / "libmaskrcnn_cpu.so", "link", *outputs)]

    def cuda_rules(self, nvcc: str, archs: list[str]) -> list[str]:
        # what a toolkit from pip lacks is in the packages that PyTorch brought
        folders = sorted((self.torch.parent / "nvidia").glob("cu*/include"))
        include = " ".join(f"-isystem {in_shell(folder)}" for folder in folders)
        targets = " ".join(f"-gencode arch=compute_{a},code=sm_{a}" for a in archs)
        targets += f" -gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"  # PTX for what comes later
        flags = (
            f"-std=c++17 -O3 --fmad=false -Xcompiler -fPIC,-fvisibility=hidden -DUSE_CUDA {TORCH_TARGET} {targets} "
            f"-isystem {in_shell(self.torch / 'include')} {include} --expt-relaxed-constexpr -diag-suppress 186"
        )
        rules = [
            "rule cuda",
            f"  command = {in_shell(nvcc)} {flags} -MMD -MF $out.d -c $in -o $out",
            "  description = CUDA $in",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {in_shell(nvcc)} -shared -cudart static $in -o $out -L{in_shell(self.torch / 'lib')} "
            "-ltorch_cuda -ltorch_cpu -lc10",
            "  description = link $out",
        ]
        outputs = []
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            outputs.append(self.objects / f"cuda_{source.stem}.o")
            rules.append(build(outputs[-1], "cuda", source))
        return [*rules, build(self.package / "lib" / "libmaskrcnn_cuda.so", "link", *outputs)]

    def info_rules(self, archs: list[str]) -> list[str]:
        header = self.objects / "build_info.h"
        strings = {
            "LIBRARIES": "CPU and CUDA" if archs else "CPU",
            "CPU_ARCHS": cpu_archs(),
            "CUDA_ARCHS": cuda_archs(archs),
            "COMPILER": self.compiler_version,
            "TORCH": self.torch_version,
        }
        text = "".join(f'#define MASKRCNN_{name} "{value}"\n' for name, value in strings.items())
        if not header.is_file() or header.read_text() != text:
            header.write_text(text)
        flags = f"-std=c++17 -O2 {shared()} -fPIC -fvisibility=hidden -include {in_shell(header)}"
        flags += "".join(f" -I{in_shell(path)}" for path in (self.pybind11, sysconfig.get_paths()["include"]))
        module = self.package / f"_build_info{sysconfig.get_config_var('EXT_SUFFIX')}"
        depends = " ".join(map(in_ninja, (header, ROOT / "csrc" / "cpu" / "instruction_set.h")))
        return [
            "rule info",
            f"  command = {self.compiler} {flags} $in -o $out",
            "  description = C++ $in",
            build(module, "info", ROOT / "csrc" / "build_info.cpp") + f" | {depends}",
        ]

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "maskrcnn"
        return [str(path) for pattern in ("lib/*", "*.so") for path in package.glob(pattern)]


def run(command: Sequence[str]) -> str:
    """What a compiler prints; raises NotBuilt if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or getattr(error, "strerror", None) or str(error)
        raise NotBuilt(f"{' '.join(command)}: {reason.strip().splitlines()[0]}") from error


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def in_ninja(path: Path) -> str:
    """As a path in a ``build`` line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def in_shell(path: str | Path) -> str:
    """As a part of a ``command``."""
    return shlex.quote(str(path)).replace("$", "$$")


def build(output: Path, rule: str, *inputs: Path) -> str:
    return f"build {in_ninja(output)}: {rule} {' '.join(map(in_ninja, inputs))}"


def shared() -> str:
    """The option that makes a library; on macOS, Python's and PyTorch's symbols are found when it is loaded."""
    return "-shared -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared"


def instruction_sets() -> list[str]:
    """Those that csrc/cpu/begin_set.h knows for this kind of processor."""
    return ["baseline", "avx2", "avx512"] if platform.machine() in ("x86_64", "AMD64") else ["baseline"]


def cpu_archs() -> str:
    machine = "x86-64" if len(instruction_sets()) > 1 else platform.machine()
    return f"{machine} ({', '.join(instruction_sets())})"


def cuda_archs(archs: list[str]) -> str:
    return " ".join(f"sm_{a}" for a in archs) if archs else "not built"


# A placeholder for everything that BuildKernels makes: it tells setuptools that the wheel is platform-specific.
if __name__ == "__main__":
    setup(
        ext_modules=[Extension("maskrcnn._build_info", ["csrc/build_info.cpp"])], cmdclass={"build_ext": BuildKernels}
    )
