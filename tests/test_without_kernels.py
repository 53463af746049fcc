"""The PyTorch references serve where the kernels are missing: in other processes, whose package has no libraries."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskrcnn.ops import library
from tests.conftest import ROOT

# The losses and gradients of a training step and the cells of a picture, by whatever serves.
SCRIPT = """
import json, pathlib
import torch
import maskrcnn
from maskrcnn.model import mask_rcnn_resnet_fpn
from maskrcnn.structures import InstanceLabels

torch.manual_seed(0)
network = mask_rcnn_resnet_fpn(18, 2, roi_batch_per_image=16).train()
planes = torch.zeros(2, 96, 96, dtype=torch.int32)
for number in range(9):
    y, x = 8 + 30 * (number // 3), 8 + 30 * (number % 3)
    planes[number % 2, y:y + 20, x:x + 24] = number + 1
image = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
losses = network(image, [(96, 96)], [InstanceLabels.from_planes(planes, (1, 2))])
sum(losses.values()).backward()

example = pathlib.Path(maskrcnn.__file__).parent / "pretrained" / "examples" / "fluorescence.png"
cells = maskrcnn.load(precision="fp32")(example, diameter=20)
print(json.dumps({
    "file": maskrcnn.__file__,
    "info": maskrcnn.build_info(),
    "losses": [float(loss) for loss in losses.values()],
    "norms": [float(p.grad.norm()) for p in network.parameters() if p.grad is not None],
    "boxes": cells.boxes.tolist(),
    "areas": [int((cells.to_labels() == number + 1).sum()) for number in range(len(cells))],
}))
"""


def run(package: Path) -> dict[str, Any]:
    """What :data:`SCRIPT` prints with the package in the folder ``package``."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def with_kernels() -> dict[str, Any]:
    result = run(ROOT)
    assert len(result["boxes"]) > 10
    return result


REASONS = [
    ({"not_built.txt": "CPU: no C++ compiler: g++: not there; install one\n"}, "no C++ compiler: g++: not there"),
    ({}, "libmaskrcnn_cpu.so has not been built"),
    ({"libmaskrcnn_cpu.so": "for another machine"}, "libmaskrcnn_cpu.so cannot be loaded: "),
]


@pytest.mark.parametrize(("libraries", "reason"), REASONS)
def test_the_reason_is_given_once(libraries: dict[str, str], reason: str, tmp_path: Path) -> None:
    copy_package(tmp_path, libraries)
    script = "import maskrcnn.ops, maskrcnn.structures; print(maskrcnn.build_info())"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    (warning,) = [line for line in done.stderr.splitlines() if "maskrcnn runs" in line]
    assert "maskrcnn runs without its CPU kernels, on PyTorch references that are slower: " in warning
    assert reason in warning
    assert reason in done.stdout


def test_training_and_prediction_are_those_of_the_kernels(with_kernels: dict[str, Any], tmp_path: Path) -> None:
    copy_package(tmp_path, {})
    found = run(tmp_path)
    assert Path(found["file"]).is_relative_to(tmp_path)
    assert found["info"].startswith("maskrcnn kernels: none, the PyTorch references serve")
    for name in ("losses", "norms", "boxes", "areas"):
        ours, theirs = (torch.tensor(result[name], dtype=torch.float64) for result in (found, with_kernels))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def copy_package(to: Path, libraries: dict[str, str]) -> None:
    shutil.copytree(ROOT / "maskrcnn", to / "maskrcnn", ignore=shutil.ignore_patterns("lib", "*.so", "__pycache__"))
    (to / "maskrcnn" / "lib").mkdir()
    for name, text in libraries.items():
        (to / "maskrcnn" / "lib" / name).write_text(text)


def test_a_gpu_without_its_kernels_is_mentioned_once(tmp_path: Path) -> None:
    """The references serve on it, beside the CPU's kernels."""
    script = (
        "import re\nimport torch\ntorch.cuda.is_available = lambda: True\n"
        "import maskrcnn.ops\nfrom maskrcnn.ops import library\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "assert list(library.MISSING) == ['CUDA']\n"
        "assert all(has(f'maskrcnn::{name}', 'CUDA') for name in library.REFERENCES)\n"
        "assert re.search(r'CUDA [^;]*, not in use \\(nvcc was not found\\)', maskrcnn.ops.build_info())\n"
    )
    shutil.copytree(ROOT / "maskrcnn", tmp_path / "maskrcnn", ignore=shutil.ignore_patterns("*cuda.so", "pretrained"))
    (tmp_path / "maskrcnn" / "lib" / "not_built.txt").write_text("CUDA: nvcc was not found\n")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "maskrcnn runs" in line]
    assert "without its CUDA kernels, on PyTorch references that are slower: nvcc was not found" in line


def test_every_op_has_a_reference_with_its_schema() -> None:
    """csrc/ops.cpp declares the ops; an op without a reference would be missing where nothing can be compiled."""
    declared = re.findall(r'm\.def\(\s*((?:"[^"]*"\s*)+)\)', (ROOT / "csrc" / "ops.cpp").read_text())
    compiled = {re.sub(r'"\s*"|^"|"$', "", text.strip()) for text in declared}
    assert {plain(library.schema(name)) for name in library.REFERENCES} == {plain(schema) for schema in compiled}


def plain(schema: str) -> str:
    return str(torch._C.parse_schema(schema))


KEY_CASES = """
    equals_torchvision and (1-5-7-1.0-2 or 1-5-size22-0.25 or plane3 or 300-100 or 500-300)
    or by_hand or of_nothing or autocast or 16_bit or registration or gradient_has or test_as_float64 or pyramid_is
    or multilevel or threshold_equal or area_or_outside or far_larger or values_on or texts or batched or odd_targets
"""


@pytest.mark.slow
def test_the_references_pass_the_key_tests_of_the_ops() -> None:
    """Those with torchvision and other witnesses; the kernels' own checks of their arguments are left out."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/ops",
        "-k",
        " ".join(KEY_CASES.split()),
    ]
    environment = {**os.environ, "MASKRCNN_CPU": "reference"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 100
