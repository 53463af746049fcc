"""``maskrcnn doctor``: the exit status, and that each fault is named with its reason and the command that mends it."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch

from maskrcnn import doctor, ops
from maskrcnn.cli import main
from maskrcnn.ops import library


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor other programs to ask."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        doctor, "_output", lambda *command: f"{command[0]} 1.0\nrelease 13.0" * (command[0] != "nvidia-smi")
    )


def broken() -> dict[str, str]:
    return {each.subject: str(each) for each in doctor.examine() if each.state == doctor.BROKEN}


def test_a_machine_with_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])  # does not exit with a status
    out = capsys.readouterr().out
    assert f"PyTorch     {torch.__version__}" in out
    assert "in use" in out
    assert "numpy " in out
    assert "release 13.0" in out
    assert out.endswith("everything that this machine can use works\n")


def test_an_extra_of_extras_is_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("zarr", "nd2") else "1.0")
    found = {each.subject: str(each) for each in doctor.examine()}
    assert found["formats"].splitlines()[0] == " -  formats     without nd2, zarr"
    assert found["formats"].endswith("pip install nd2 zarr")
    assert found["czi"] == "ok  czi         pylibCZIrw 1.0"


def test_without_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(library.MISSING, "CPU", "no C++ compiler")
    with pytest.raises(SystemExit) as exit_:
        main(["doctor"])
    assert exit_.value.code == 1
    out = capsys.readouterr().out
    assert "!!  CPU         PyTorch references, which are slower: no C++ compiler\n" in out
    assert "                python setup.py build_ext --inplace\n" in out
    assert out.endswith("to mend: CPU\n")


def test_kernels_that_do_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no kernel image is available\nsecond line")

    monkeypatch.setattr(ops, "nms", fail)
    assert broken()["CPU"].splitlines()[0].endswith(": no kernel image is available")
    monkeypatch.setattr(ops, "nms", lambda *_: torch.tensor([0, 1]))
    assert "NMS of two boxes kept [0, 1]; expected [0]" in broken()["CPU"]


def test_a_gpu_without_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setitem(library.MISSING, "CUDA", "nvcc was not found")
    assert "nvcc was not found" in broken()["CUDA"]
    assert broken()["CUDA"].endswith("MASKRCNN_CUDA=1 python setup.py build_ext --inplace")


def test_a_gpu_that_pytorch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_output", lambda *command: "NVIDIA H100, 580.1" * (command[0] == "nvidia-smi"))
    assert "NVIDIA H100, 580.1, which this PyTorch cannot use" in broken()["GPU"]
    missing = [str(each) for each in doctor.examine() if each.subject in ("ninja", "nvcc")]
    assert all("not found\n                pip install" in line for line in missing)
    assert len(missing) == 2


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("tifffile", "pytest") else version(name))
    assert broken() == {"packages": "!!  packages    without tifffile\n                pip install tifffile"}
    (dev,) = [each for each in doctor.examine() if each.subject == "dev"]
    assert dev.state == doctor.NOTE
    assert dev.command == "pip install pytest"


def test_programs_that_are_missing_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert doctor._output("/nowhere/nvcc", "--version") == ""
    assert doctor._output("false") == ""
    assert doctor._output("echo", "a") == "a"
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(subprocess.TimeoutExpired("nvcc", 30))
    )
    assert doctor._output("nvcc") == ""
