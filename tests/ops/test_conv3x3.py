"""3x3 convolutions against PyTorch's own in float64, forward and in every gradient."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from maskrcnn import ops
from maskrcnn.model.conv import Conv3x3

CLOSE = 5e-5  # of the largest value: float32 sums of up to 512 * 9 products, through transforms with factors up to 3.4
SHAPES = [
    (1, 16, 16, 4, 4),
    (1, 16, 32, 1, 1),
    (2, 32, 48, 7, 13),
    (3, 64, 32, 14, 14),
    (1, 48, 16, 3, 200),
    (2, 256, 80, 31, 17),
    (0, 16, 16, 14, 14),
]


def _inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    batch, inputs, outputs, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, height, width, generator=generator)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
    return x, weight, torch.randn(outputs, generator=generator)


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        assert float((actual - expected).abs().max()) <= CLOSE * max(1e-3, float(expected.abs().max()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_float64(shape: tuple[int, ...], with_bias: bool, layout: torch.memory_format) -> None:
    x, weight, bias = _inputs(shape)
    mine = [t.contiguous(memory_format=layout).requires_grad_() for t in (x, weight)]
    exact = [t.double().requires_grad_() for t in (x, weight)]
    if with_bias:
        mine.append(bias.requires_grad_())
        exact.append(bias.detach().double().requires_grad_())
    (out,) = ops.conv3x3([mine[0]], *mine[1:])
    (expected,) = ops.conv3x3_reference([exact[0]], *exact[1:])
    _assert_close(out, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for own, other in zip(
        torch.autograd.grad(out, mine, upstream), torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        _assert_close(own, other)


def test_a_pyramid_is_its_levels() -> None:
    x, weight, bias = _inputs((2, 32, 16, 9, 21))
    maps = [x, x[:, :, :5, :3].clone(), x[:1, :, :1, :2].clone()]
    weight.requires_grad_()
    together = ops.conv3x3(maps, weight, bias)
    for own, map_ in zip(together, maps, strict=True):
        _assert_close(own, F.conv2d(map_, weight, bias, padding=1))
    (gradient,) = torch.autograd.grad([out.square().sum() for out in together], weight)
    apart = [ops.conv3x3([map_], weight, bias)[0].square().sum() for map_ in maps]
    _assert_close(gradient, torch.autograd.grad(apart, weight)[0])


def test_the_gradient_has_a_gradient() -> None:
    x, weight, _ = _inputs((1, 16, 32, 6, 5))
    results = []
    for convolve, kind in ((ops.conv3x3, torch.float32), (ops.conv3x3_reference, torch.float64)):
        a, w = (t.to(kind).requires_grad_() for t in (x, weight))
        (out,) = convolve([a], w)
        (first,) = torch.autograd.grad(out.square().sum(), a, create_graph=True)
        results.append(torch.autograd.grad(first.pow(3).sum(), [a, w]))
    for own, other in zip(*results, strict=True):
        _assert_close(own, other)


@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_any_number_of_threads(threads: int) -> None:
    x, weight, bias = _inputs((3, 64, 32, 50, 41))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (ops.conv3x3([x], weight, bias)[0] for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, second)
    _assert_close(first, F.conv2d(x.double(), weight.double(), bias.double(), padding=1))


MEMORY = """
import ctypes
import torch
from maskrcnn import ops

def peak(run):
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024

def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])

torch.set_num_threads(64)
x, weight = torch.randn(1, 128, 224, 224).contiguous(memory_format=torch.channels_last), torch.randn(128, 128, 3, 3)
maps = [x.permute(0, 2, 3, 1)]
for run in (lambda: ops.conv3x3([x], weight), lambda: torch.ops.maskrcnn.conv3x3_weight_gradient(maps, maps)):
    run()
    print(peak(run))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_number_of_threads() -> None:
    """48 tiles for each of 64 threads would take 113 MB; 32 MB are allowed, and the result and the transformed weights
    take 27 MB and 3 MB."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    forward, gradient = map(float, run.stdout.split())
    assert forward < 27 + 3 + 32 + 15
    assert gradient < 3 + 3 + 32 + 15


def test_values_that_are_not_finite_stay_in_their_neighbourhood() -> None:
    x, weight, bias = _inputs((1, 16, 16, 12, 12))
    x[0, 3, 1, 1] = torch.nan
    out = ops.conv3x3([x], weight, bias)[0]
    assert bool(out[:, :, :3, :3].isnan().all())
    assert bool(out[:, :, 4:, 4:].isfinite().all())  # a tile is the smallest unit


@pytest.mark.parametrize("transposed", [False, True])
def test_the_op_keeps_its_promises(transposed: bool) -> None:
    channels = 32 if transposed else 16
    maps = [torch.randn(2, 5, 6, channels, requires_grad=True), torch.randn(1, 2, 3, channels)]
    weight = torch.randn(32, 16, 3, 3, requires_grad=True)
    bias = torch.randn(16 if transposed else 32, requires_grad=True)
    opcheck(torch.ops.maskrcnn.conv3x3, (maps, weight, bias, transposed))
    grads = [torch.randn(2, 5, 6, 32)]
    opcheck(torch.ops.maskrcnn.conv3x3_weight_gradient, ([torch.randn(2, 5, 6, 16)], grads))


@pytest.mark.parametrize(
    ("map_", "weight"),
    [
        (torch.zeros(1, 16, 4, 4, dtype=torch.float64), torch.zeros(16, 16, 3, 3)),
        (torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 5, 5)),
        (torch.zeros(1, 16, 4, 4), torch.zeros(16, 32, 3, 3)),
        (torch.zeros(1, 16, 4, 4), torch.zeros(8, 16, 3, 3)),
        (torch.zeros(16, 4, 4), torch.zeros(16, 16, 3, 3)),
    ],
)
def test_what_it_cannot_do_is_refused(map_: Tensor, weight: Tensor) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        ops.conv3x3([map_], weight)


def test_the_kernel_checks_its_arguments() -> None:
    conv3x3, gradient = torch.ops.maskrcnn.conv3x3, torch.ops.maskrcnn.conv3x3_weight_gradient
    x, weight = torch.zeros(1, 4, 4, 16), torch.zeros(16, 16, 3, 3)
    for arguments in (
        ([], weight, None, False),
        ([x[..., :8]], weight, None, False),
        ([x.transpose(1, 2)[:, ::2]], weight, None, False),
        ([x.double()], weight, None, False),
        ([x], weight.double(), None, False),
        ([x], weight[:8], None, False),
        ([x], weight, torch.zeros(8), False),
    ):
        with pytest.raises(RuntimeError, match="must"):
            conv3x3(*arguments)
    for maps, grads in (([x], []), ([x], [x[:, :2].contiguous()]), ([x], [x[..., :8].contiguous()])):
        with pytest.raises(RuntimeError, match="must"):
            gradient(maps, grads)


class TestModule:
    """``Conv3x3`` takes the kernel where it can and PyTorch's convolution elsewhere."""

    def test_as_conv2d(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        monkeypatch.setattr(ops, "conv3x3", lambda *args, kernel=ops.conv3x3: calls.append(1) or kernel(*args))
        for inputs, size, kind, by_kernel in (
            (32, 16, torch.float32, True),
            (32, 3, torch.float32, False),  # the weights would cost more than the map
            (32, 16, torch.float64, False),
            (24, 16, torch.float32, False),
        ):
            calls.clear()
            conv = Conv3x3(inputs, 16).to(kind)
            x = torch.randn(1, inputs, size, size, dtype=kind)
            _assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))
            assert bool(calls) == by_kernel

    def test_autocast_is_obeyed(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert Conv3x3(16, 16)(torch.randn(1, 16, 8, 8)).dtype == torch.bfloat16

    def test_levels_go_together(self) -> None:
        conv = Conv3x3(16, 16)
        maps = [torch.randn(1, 16, size, size) for size in (8, 4, 2)]
        for own, map_ in zip(conv.forward_maps(maps), maps, strict=True):
            _assert_close(own, F.conv2d(map_, conv.weight, conv.bias, padding=1))
