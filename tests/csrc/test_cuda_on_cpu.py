"""The CUDA kernels' logic without a GPU: their sources, compiled for the CPU with a handful of CUDA's words emulated
thread by thread, must give what the CPU kernels give. Speed, races between warps and the real compiler's arithmetic are
for a GPU to show (``pytest -m cuda``)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from maskrcnn import ops  # noqa: F401 (loads the CPU kernels)
from tests.conftest import ROOT
from tests.ops.test_crop_labels import random_arguments
from tests.ops.test_nms import random_boxes
from tests.ops.test_roi_align import random_map, random_rois

pytestmark = pytest.mark.slow
CSRC = ROOT / "csrc"
LAUNCH = re.compile(r"(\w+(?:<[\w, ]+>)?)\s*<<<(.*?), 0, launch\.stream\(\)>>>\(", re.DOTALL)


def _for_the_cpu(source: str) -> str:
    """A ``.cu`` file as C++: launches become calls, and the ops are registered for CPU tensors as ``emulated::*``."""
    source = source.replace("STD_CUDA_KERNEL_LAUNCH_CHECK();", "").replace("STD_CUDA_CHECK(", "(void)(")
    source = source.replace("STABLE_TORCH_LIBRARY_IMPL(maskrcnn, CUDA", "STABLE_TORCH_LIBRARY_IMPL(emulated, CPU")

    def call(match: re.Match[str]) -> str:
        kernel, configuration = match.groups()
        depths = [configuration[:i].count("(") - configuration[:i].count(")") for i in range(len(configuration))]
        comma = next(i for i, c in enumerate(configuration) if c == "," and depths[i] == 0)
        return f"emulation::launch({configuration[:comma]}, {configuration[comma + 1 :]}, {kernel}, "

    converted = LAUNCH.sub(call, source)
    assert "<<<" not in converted
    return converted


def _launch_header(source: str) -> str:
    """``launch.cuh`` without device and stream, and with small blocks: every CUDA thread is a thread of the system."""
    constructor = re.compile(r"explicit Launch\(const Tensor& tensor\).*?\n    }\n", re.DOTALL)
    source = constructor.sub("explicit Launch(const Tensor&) {}\n", source)
    source = source.replace("torch::stable::accelerator::DeviceGuard guard_;", "")
    source = source.replace("cudaStream_t stream_;", "cudaStream_t stream_ = nullptr;")
    source = source.replace("#include <cuda_runtime.h>", '#include "../emulation.h"')
    return source.replace("constexpr int kThreads = 256;", "constexpr int kThreads = 32;")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "cuda").mkdir()
    for header in (*CSRC.glob("*.h"), Path(__file__).parent / "emulation.h"):
        shutil.copy(header, folder)
    (folder / "cuda" / "launch.cuh").write_text(_launch_header((CSRC / "cuda" / "launch.cuh").read_text()))
    (folder / "ops.cpp").write_text((CSRC / "ops.cpp").read_text().replace("LIBRARY(maskrcnn", "LIBRARY(emulated"))
    for path in (CSRC / "cuda").glob("*.cu"):
        (folder / "cuda" / f"{path.stem}.cpp").write_text(_for_the_cpu(path.read_text()))
    include = Path(torch.__file__).parent / "include"
    flags = f"-std=c++20 -O1 -fPIC -w -ffp-contract=off -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem {include}"
    sources = [str(folder / "ops.cpp"), *map(str, (folder / "cuda").glob("*.cpp"))]
    library = folder / "libemulated.so"
    torch_libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10", "-lpthread"]
    subprocess.run(["g++", *flags.split(), "-shared", *sources, "-o", str(library), *torch_libraries], check=True)
    torch.ops.load_library(library)
    return torch.ops.emulated


@pytest.mark.parametrize("count", [1, 63, 64, 65, 400, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nms(emulated, count: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    boxes = random_boxes(count, 80, 30, seed=count, dtype=dtype).round()
    for groups in (1, 4):
        group = torch.randint(0, groups, (count,), generator=torch.Generator().manual_seed(0)).sort().values
        for threshold in (0.0, 0.3, 0.7):
            expected = torch.ops.maskrcnn.nms(boxes, group, threshold)
            assert torch.equal(emulated.nms(boxes, group, threshold), expected)


@pytest.mark.parametrize("targets", [0, 1, 33, 90])
@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_match_boxes(emulated, targets: int, allow_low_quality: bool, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    for whole in (False, True):
        anchors = random_boxes(200, 60, 40, 0, dtype)
        cells = random_boxes(targets, 60, 40, 1, dtype)
        if whole:
            anchors, cells = (anchors / 8).round() * 8 + 1, (cells / 8).round() * 8 + 1
            anchors[:, 2:] += 8
            cells[:, 2:] += 8
        arguments = (anchors, cells, 0.7, 0.3, allow_low_quality)
        assert torch.equal(emulated.match_boxes(*arguments), torch.ops.maskrcnn.match_boxes(*arguments))


@pytest.mark.parametrize(("size", "binary"), [(14, False), (5, False), (14, True)])
def test_crop_labels(emulated, size: int, binary: bool) -> None:  # type: ignore[no-untyped-def]
    arguments = random_arguments(40, 50, 60)
    ours = emulated.crop_labels(*arguments, size, binary)
    expected = torch.ops.maskrcnn.crop_labels(*arguments, size, binary)
    assert torch.isclose(ours, expected, rtol=1e-4, atol=1e-5).float().mean() > 0.999
    planes, rois, plane, ids = arguments
    assert not emulated.crop_labels(planes, rois, plane + 3, ids, size, binary).any()  # no such plane


@pytest.mark.parametrize("channels", [8, 5])
@pytest.mark.parametrize(("ratio", "aligned"), [(0, False), (2, False), (0, True), (3, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roi_align(emulated, channels: int, ratio: int, aligned: bool, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    maps = [random_map(2, h, w, channels, dtype=dtype) for h, w in ((13, 11), (7, 5))]
    rois, level = random_rois(12, 2, 13, dtype=dtype), torch.arange(12) % 2
    forward = (rois, level, [1.0, 0.5])
    ours = emulated.roi_align(maps, *forward, 3, 2, ratio, aligned)
    torch.testing.assert_close(ours, torch.ops.maskrcnn.roi_align(maps, *forward, 3, 2, ratio, aligned))
    backward = (random_map(*ours.shape, dtype=dtype), *forward, 2, [13, 7], [11, 5], ratio, aligned)
    expected = torch.ops.maskrcnn.roi_align_backward(*backward, False)
    for deterministic in (False, True):
        torch.testing.assert_close(emulated.roi_align_backward(*backward, deterministic), expected)


def test_roi_align_of_what_the_host_cannot_check(emulated) -> None:  # type: ignore[no-untyped-def]
    nan, inf = torch.nan, torch.inf
    rois = torch.tensor([[5.0, 0, 0, 3, 3], [0, nan, 0, 3, 3], [0, 0, 0, inf, 3], [nan, 0, 0, 2, 2], [-1, 0, 0, 2, 2]])
    maps = [random_map(2, 9, 9, 4)]
    out = emulated.roi_align(maps, rois, torch.zeros(5, dtype=torch.int64), [1.0], 2, 2, 0, False)
    assert not out.any()
    assert not emulated.roi_align(maps, torch.zeros(1, 5), torch.tensor([7]), [1.0], 2, 2, 0, False).any()
