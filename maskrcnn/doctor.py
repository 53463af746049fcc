"""``maskrcnn doctor``: what is installed, which kernels are in use, what is missing, and the command that gets it.

``python -m maskrcnn.doctor`` does the same where other packages that maskrcnn requires are missing.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import torch
from packaging.requirements import Requirement

import maskrcnn
from maskrcnn import ops
from maskrcnn.ops import library

OK, NOTE, BROKEN = "ok", "-", "!!"
BUILD = "python setup.py build_ext --inplace"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what it is about, what was found, and the command that mends it."""

    state: str
    subject: str
    found: str
    command: str = ""

    def __str__(self) -> str:
        line = f"{self.state:>2}  {self.subject:10}  {self.found}"
        return line + (f"\n{'':16}{self.command}" if self.command else "")


@dataclass(frozen=True)
class DoctorConfig:
    """Tell what is installed, which kernels are in use, and what is missing."""

    def run(self) -> int:
        """Print the report; 0 if the kernels of this machine's devices work, else 1."""
        findings = list(examine())
        print("\n".join(map(str, findings)))
        broken = [finding.subject for finding in findings if finding.state == BROKEN]
        print("\n" + (f"to mend: {', '.join(broken)}" if broken else "everything that this machine can use works"))
        return 1 if broken else 0


def examine() -> Iterator[Finding]:
    """Everything that is worth telling, in order."""
    here = os.path.dirname(maskrcnn.__file__)
    yield Finding(OK, "maskrcnn", f"{maskrcnn.__version__} in {here}")
    yield Finding(OK, "Python", f"{platform.python_version()} ({sys.executable}) on {platform.platform()}")
    yield from _packages()
    yield _cpu_kernels()
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    limited = f", OMP_NUM_THREADS is {variable}" if variable else ""
    yield Finding(OK, "threads", f"{threads} of {os.cpu_count()} processors{limited}")
    yield from _gpus()
    yield from _tools()


def _packages() -> Iterator[Finding]:
    """PyTorch, what the package requires and its extras."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Finding(OK, "PyTorch", f"{torch.__version__}, {cuda}")
    try:
        requirements = [Requirement(text) for text in metadata.requires("maskrcnn") or []]
    except metadata.PackageNotFoundError:
        yield Finding(NOTE, "packages", "maskrcnn is imported from its folder, not installed", "pip install -e .")
        return
    always = _required(requirements, "")
    for extra in ["", *(metadata.metadata("maskrcnn").get_all("Provides-Extra") or [])]:
        names = [name for name in _required(requirements, extra) if name not in always] or always
        found = {name: _version(name) for name in names}
        missing = [name for name, version in found.items() if version is None]
        subject = extra or "packages"
        if missing:
            state = NOTE if extra else BROKEN
            yield Finding(state, subject, f"without {', '.join(missing)}", shlex.join(["pip", "install", *missing]))
        else:
            yield Finding(OK, subject, ", ".join(f"{name} {version}" for name, version in found.items()))


def _required(requirements: Sequence[Requirement], extra: str) -> list[str]:
    """Names of the packages that an extra requires, and the extras of this package that it names."""
    names: list[str] = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.name == "maskrcnn":
            names += [name for inner in sorted(requirement.extras) for name in _required(requirements, inner)]
        else:
            names.append(requirement.name)
    return list(dict.fromkeys(names))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_kernels() -> Finding:
    if "CPU" in library.MISSING:
        return Finding(BROKEN, "CPU", f"PyTorch references, which are slower: {library.MISSING['CPU']}", BUILD)
    return _works("cpu", "CPU", f"{library.CPU_LIBRARY.name}: {ops.build_info().removeprefix('maskrcnn kernels: ')}")


def _gpus() -> Iterator[Finding]:
    driver = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if not torch.cuda.is_available():
        if driver:
            command = "pip install --force-reinstall torch    # the one for this driver: https://pytorch.org"
            yield Finding(BROKEN, "GPU", f"{driver}, which this PyTorch cannot use", command)
        else:
            yield Finding(NOTE, "GPU", "none")
        if library.CUDA_LIBRARY.is_file():
            yield Finding(NOTE, "CUDA", f"{library.CUDA_LIBRARY.name} is there, and not loaded without a GPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield Finding(
            OK, f"GPU {index}", f"{properties.name}, {properties.major}.{properties.minor}, {memory}; driver: {driver}"
        )
    if "CUDA" in library.MISSING:
        reason = f"PyTorch references, which are slower: {library.MISSING['CUDA']}"
        yield Finding(BROKEN, "CUDA", reason, f"MASKRCNN_CUDA=1 {BUILD}")
    else:
        yield _works("cuda", "CUDA", library.CUDA_LIBRARY.name)


def _works(device: str, subject: str, found: str) -> Finding:
    """That the kernels run: they may be of another compute capability."""
    try:
        kept = ops.nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]], device=device), torch.ones(2, device=device), 0.5)
        wrong = "" if kept.tolist() == [0] else f"NMS of two boxes kept {kept.tolist()}; expected [0]"
    except RuntimeError as error:
        wrong = str(error).splitlines()[0]
    return Finding(BROKEN, subject, f"{found}: {wrong}", BUILD) if wrong else Finding(OK, subject, found)


def _tools() -> Iterator[Finding]:
    """Compilers: only needed to build the kernels again."""
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "c++", "clang++") if shutil.which(c)), "")
    beside_python = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    ninja = shutil.which("ninja", path=beside_python) or "ninja"
    nvcc = os.path.join(os.environ["CUDA_HOME"], "bin", "nvcc") if os.environ.get("CUDA_HOME") else "nvcc"
    for subject, command, how in (
        ("C++", shlex.split(compiler), "apt install g++    # or dnf install gcc-c++, xcode-select --install"),
        ("ninja", [ninja], "pip install ninja"),
        ("nvcc", [nvcc], "pip install nvidia-cuda-nvcc    # or the CUDA toolkit; only for GPUs"),
    ):
        lines = _output(*command, "--version").splitlines() if command else []
        if lines:
            version = next((line for line in lines if "release" in line), lines[0])
            yield Finding(OK, subject, f"{' '.join(command)}: {version}")
        else:
            yield Finding(NOTE, subject, "not found", how)


def _output(*command: str) -> str:
    """What a command prints, empty if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(DoctorConfig().run())
