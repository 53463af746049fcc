"""Loads the shared libraries of the kernels, which register their ops as ``torch.ops.maskrcnn``."""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent.parent / "lib"
CPU_LIBRARY = FOLDER / "libmaskrcnn_cpu.so"
CUDA_LIBRARY = FOLDER / "libmaskrcnn_cuda.so"


def load_libraries() -> None:
    """Load the CPU kernels, and the CUDA kernels if there is a GPU and they were built.

    Raises ImportError if the CPU library was not built: there is no slow fallback.
    """
    if not CPU_LIBRARY.is_file():
        raise ImportError(f"{CPU_LIBRARY} is missing; build the kernels: python setup.py build_ext --inplace")
    torch.ops.load_library(CPU_LIBRARY)
    if torch.cuda.is_available() and CUDA_LIBRARY.is_file():
        torch.ops.load_library(CUDA_LIBRARY)


def build_info() -> str:
    """One line that tells which libraries were built, for which processors, with which compiler and PyTorch headers."""
    from maskrcnn._build_info import build_info as info

    parts: dict[str, str] = info()
    return (
        f"maskrcnn kernels: {parts['libraries']}; CPU {parts['cpu']}, {parts['cpu_chosen']} in use; "
        f"CUDA {parts['cuda']}; built by {parts['compiler']} with the headers of PyTorch {parts['torch_headers']}, "
        "for 2.11 and newer"
    )


load_libraries()
