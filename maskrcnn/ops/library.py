"""Loads the kernels' shared libraries, or puts the PyTorch references in their place, as ``torch.ops.maskrcnn``."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

FOLDER = Path(__file__).resolve().parent.parent / "lib"
CPU_LIBRARY = FOLDER / "libmaskrcnn_cpu.so"
CUDA_LIBRARY = FOLDER / "libmaskrcnn_cuda.so"
HOW_TO_BUILD = (
    "python setup.py build_ext --inplace in the source folder builds them; maskrcnn doctor says what is missing"
)

Function = TypeVar("Function", bound=Callable[..., Any])


def load_libraries() -> dict[str, str]:
    """Load the CPU kernels, and the CUDA kernels if there is a GPU.

    Returns the devices, "CPU" or "CUDA", whose kernels are not there, each with the reason in one line. CUDA kernels
    cannot be loaded without those for the CPU, which bring the ops' schemas.
    """
    asked = os.environ.get("MASKRCNN_CPU") == "reference"
    if reason := "MASKRCNN_CPU is reference" if asked else _load(CPU_LIBRARY, "CPU"):
        return {"CPU": reason, "CUDA": reason}
    if torch.cuda.is_available() and (reason := _load(CUDA_LIBRARY, "CUDA")):
        return {"CUDA": reason}
    return {}


def _load(library: Path, device: str) -> str:
    """Load a library; the reason why that was not possible, empty if it was."""
    if not library.is_file():
        return why_not_built(device) or f"{library.name} has not been built"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:  # of another machine, or a PyTorch that lacks what it needs
        return f"{library.name} cannot be loaded: {str(error).splitlines()[0]}"
    return ""


def why_not_built(device: str) -> str:
    """What setup.py noted when it could not build the kernels for ``device``; empty if nothing."""
    notes = FOLDER / "not_built.txt"
    lines = notes.read_text().splitlines() if notes.is_file() else []
    return next((line.removeprefix(f"{device}: ") for line in lines if line.startswith(f"{device}: ")), "")


def reference(name: str) -> Callable[[Function], Function]:
    """Decorator: ``torch.ops.maskrcnn.<name>`` is this function on devices whose kernels are not there.

    Its annotations are the op's schema. It works below autograd, which is registered for the op.
    """

    def register(function: Function) -> Function:
        REFERENCES[name] = function
        if "CPU" in MISSING:
            _OPS.define(schema(name))
        for device in MISSING:
            # as a kernel, it gets the dtypes that it is given
            _OPS.impl(name, torch.autocast(device.lower(), enabled=False)(function), device)
        return function

    return register


def schema(name: str) -> str:
    """The schema of an op as the annotations of its reference say; sizes are whole numbers, as for the kernels."""
    inferred: str = torch.library.infer_schema(REFERENCES[name], mutates_args=())
    return name + inferred.replace("SymInt", "int")


def build_info() -> str:
    """One line that tells which libraries were built, for which processors, with which compiler and PyTorch headers."""
    if "CPU" in MISSING:
        return f"maskrcnn kernels: none, the PyTorch references serve on the CPU and on GPUs ({MISSING['CPU']})"
    from maskrcnn._build_info import build_info as info

    parts: dict[str, str] = info()
    cuda = f"{parts['cuda']}, not in use ({MISSING['CUDA']})" if "CUDA" in MISSING else parts["cuda"]
    return (
        f"maskrcnn kernels: {parts['libraries']}; CPU {parts['cpu']}, {parts['cpu_chosen']} in use; "
        f"CUDA {cuda}; built by {parts['compiler']} with the headers of PyTorch {parts['torch_headers']}, "
        "for 2.11 and newer"
    )


def _warn() -> None:
    """Say once, not in every worker process, that the references serve, and why."""
    device = next(iter(MISSING), None)
    if device and multiprocessing.parent_process() is None:
        warnings.warn(
            f"maskrcnn runs without its {device} kernels, on PyTorch references that are slower: {MISSING[device]}. "
            f"{HOW_TO_BUILD}",
            RuntimeWarning,
            stacklevel=2,
        )


REFERENCES: dict[str, Callable[..., Any]] = {}
"""Of each op, whether it is in use or not."""

MISSING = load_libraries()
"""Why kernels are not there: "CPU" and "CUDA", each with the reason in one line. Empty where all are."""

_OPS = torch.library.Library("maskrcnn", "FRAGMENT")
_warn()
