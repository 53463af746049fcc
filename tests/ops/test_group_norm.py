"""Group normalization against its definition in float64, forward and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from maskrcnn import ops
from tests.conftest import DEVICES

SHAPES = [
    ((1, 256, 1, 1), 32),
    ((2, 64, 33, 17), 32),
    ((3, 512, 5, 9), 32),
    ((9, 256, 14, 14), 32),
    ((1, 32, 90, 70), 32),
    ((2, 48, 9, 8), 3),
    ((2, 21, 6, 5), 7),  # no vectors
    ((2, 5, 1, 40), 1),
    ((0, 64, 4, 4), 32),
    ((2, 64, 0, 4), 32),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Of the largest value: rounding of the results, and of the maps under the gradients' sums."""


class Case:
    """Random arguments of one call, which need gradients."""

    def __init__(
        self,
        shape: tuple[int, ...],
        groups: int,
        dtype: torch.dtype = torch.float32,
        residual: bool = False,
        given: bool = False,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(device)

        parameters = torch.promote_types(dtype, torch.float32)
        self.x = (2 * random(*shape) + 3).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        self.groups = groups
        self.weight, self.bias = (random(shape[1]).to(parameters).requires_grad_() for _ in range(2))
        self.residual = random(*shape).to(dtype).requires_grad_() if residual else None
        self.statistics = torch.stack([random(1, groups), random(1, groups).square() + 0.1]) if given else None
        self.upstream = random(*shape).to(dtype)

    def without_kink(self) -> Case:
        """No gradient where the result is 0 but for rounding, which decides whether ReLU lets the gradient through."""
        self.upstream[self.exact().run(ops.group_norm_reference)[0].abs() < 1e-5] = 0
        return self

    def exact(self) -> Case:
        other = object.__new__(Case)
        for name, value in vars(self).items():
            exact = value.detach().double() if isinstance(value, Tensor) else value
            setattr(other, name, exact.requires_grad_() if isinstance(value, Tensor) and value.requires_grad else exact)
        return other

    def run(self, op=ops.group_norm, relu: bool = False) -> list[Tensor]:  # type: ignore[no-untyped-def]
        """The result and the gradients."""
        out = op(self.x, self.groups, self.weight, self.bias, 1e-5, relu, self.residual, self.statistics)
        leaves = [leaf for leaf in (self.x, self.weight, self.bias, self.residual) if leaf is not None]
        return [out.detach(), *torch.autograd.grad(out, leaves, self.upstream)]


def _assert_close(own: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for a, b in zip(own, exact, strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert float((a - b).abs().max()) <= tolerance * max(1e-3, float(b.abs().max()))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("shape", "groups"), [*SHAPES, ((2, 64, 150, 130), 32), ((300, 64, 14, 14), 32)])
@pytest.mark.parametrize("device", DEVICES)
def test_as_float64(
    device: str, shape: tuple[int, ...], groups: int, dtype: torch.dtype, residual: bool, relu: bool
) -> None:
    for given in (False, True):
        case = Case(shape, groups, dtype, residual, given, device).without_kink()
        own, exact = case.run(relu=relu), case.exact().run(ops.group_norm_reference, relu)
        _assert_close(own, exact, TOLERANCE[dtype])
        assert own[0].dtype == own[1].dtype == dtype
        assert own[2].dtype == case.weight.dtype
        assert own[0].permute(0, 2, 3, 1).is_contiguous()


def test_the_reference_is_pytorchs() -> None:
    case = Case((2, 64, 7, 5), 32).exact()
    expected = F.group_norm(case.x, 32, case.weight, case.bias)
    torch.testing.assert_close(ops.group_norm_reference(case.x, 32, case.weight, case.bias), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(1, 256, 61, 43), (3, 64, 170, 141), (400, 128, 14, 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_on_every_run_on_a_gpu(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    case = Case(shape, 32, dtype, residual=True, device="cuda")
    first = case.run(relu=True)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, case.run(relu=True), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("first", [1000.0, 0.0])
def test_a_mean_of_a_thousand_standard_deviations(first: float, device: str) -> None:
    """Also where the first pixels are no guide to the mean. PyTorch's channels-last kernel loses the variance here."""
    x = torch.randn(2, 64, 60, 50, generator=torch.Generator().manual_seed(0)) + 1000
    x[:, :, :2] = first
    x, weight, bias = x.to(device), torch.ones(64, device=device), torch.zeros(64, device=device)
    exact = ops.group_norm_reference(x.double(), 32, weight.double(), bias.double())
    assert float((ops.group_norm(x, 32, weight, bias) - exact).abs().max()) < 3e-4  # half a digit of the input is 3e-5
    variance, mean = torch.var_mean(x.double().unflatten(1, (32, 2)).flatten(2), dim=2, correction=0)
    rounding = 1e-6 if device == "cpu" else 1e-5  # a GPU's threads have fewer values each, and more partial results
    torch.testing.assert_close(
        ops.group_statistics(x, 32).double(), torch.stack([mean, variance]), rtol=rounding, atol=0
    )


def test_a_constant_map() -> None:
    x = torch.full((1, 32, 40, 40), 1000.1)
    weight, bias = torch.ones(32), torch.arange(32.0)
    assert torch.equal(ops.group_statistics(x, 32)[1], torch.zeros(1, 32))
    own = ops.group_norm(x, 32, weight, bias)
    torch.testing.assert_close(own, bias.view(1, -1, 1, 1).expand(x.shape), rtol=0, atol=0.02)


def test_groups_of_one_element() -> None:
    """They are their own mean, whatever they are."""
    case = Case((2, 32, 1, 1), 32)
    out, gradient, *_ = case.run()
    assert torch.equal(out, case.bias.view(1, -1, 1, 1).expand(out.shape))
    assert float(gradient.abs().max()) < 1e-3  # 300 times the rounding of the input


def test_values_that_are_not_numbers_stay_in_their_group() -> None:
    x = torch.randn(2, 64, 5, 5)
    x[0, 3, 1, 1] = torch.nan
    out = ops.group_norm(x, 32, torch.ones(64), torch.zeros(64), relu=True)
    assert bool(out[0, 2:4].isnan().all())
    out[0, 2:4] = 0
    assert bool(out.isfinite().all())


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.contiguous(),
        lambda x: x.contiguous().transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
        lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    ],
)
def test_any_layout(change) -> None:  # type: ignore[no-untyped-def]
    case = Case((2, 64, 12, 9), 32, residual=True)
    expected = case.run(relu=True)
    case.x, case.residual = (change(t.detach()).requires_grad_() for t in (case.x, case.residual))
    for a, b in zip(case.run(relu=True), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 256, 61, 43), (3, 64, 70, 41), (40, 128, 14, 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 32):  # with some a map is a thread's, with others only a part of it
            torch.set_num_threads(threads)
            results.append(Case(shape, 32, dtype).run(relu=True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_statistics_of_another_map() -> None:
    """Those of the whole picture make a tile's results part of the picture's."""
    x = torch.randn(1, 64, 40, 32)
    weight, bias = torch.randn(64), torch.randn(64)
    whole = ops.group_norm(x, 32, weight, bias, relu=True)
    tile = ops.group_norm(x[..., 8:24, :16], 32, weight, bias, relu=True, statistics=ops.group_statistics(x, 32))
    assert torch.equal(tile, whole[..., 8:24, :16])


def test_the_maps_dtype_is_kept_under_autocast() -> None:
    x, weight, bias = torch.randn(1, 64, 8, 8), torch.ones(64), torch.zeros(64)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.group_norm(x, 32, weight, bias).dtype == torch.float32
        assert ops.group_norm(x.bfloat16(), 32, weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_keeps_its_promises(dtype: torch.dtype, residual: bool, given: bool) -> None:
    maps = torch.randn(2, 5, 6, 64).to(dtype).requires_grad_()
    weight, bias = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    statistics = torch.rand(2, 2, 32) + 0.1
    added = torch.randn(2, 5, 6, 64).to(dtype).requires_grad_() if residual else None
    for relu in (False, True):
        arguments = (maps, weight, bias, statistics if given else None, added, 32, 1e-5, relu)
        opcheck(torch.ops.maskrcnn.group_norm, arguments)
        backward = (
            torch.randn_like(maps),
            maps.detach(),
            weight.detach(),
            bias.detach(),
            statistics,
            1e-5,
            relu,
            given,
        )
        opcheck(torch.ops.maskrcnn.group_norm_backward, backward)


def test_what_it_cannot_do_is_refused() -> None:
    x, weight = torch.zeros(2, 64, 4, 4), torch.zeros(64)
    for arguments, words in (
        ((x[0], 32, weight, weight), "input is"),
        ((x.long(), 32, weight, weight), "input is"),
        ((x, 7, weight, weight), "groups is 7; expected a divisor of 64"),
        ((x, 0, weight, weight), "groups is 0"),
        ((x, 32, weight[:8], weight), "weight has shape"),
        ((x, 32, weight, weight[:8]), "bias has shape"),
        ((x, 32, weight, weight, 1e-5, False, x[:1]), "residual is"),
        ((x, 32, weight, weight, 1e-5, False, x.double()), "residual is"),
        ((x, 32, weight, weight, 1e-5, False, None, torch.zeros(2, 3, 32)), "statistics has shape"),
    ):
        with pytest.raises(ValueError, match=words):
            ops.group_norm(*arguments)  # type: ignore[arg-type]


def test_the_kernel_checks_its_arguments() -> None:
    forward, backward = torch.ops.maskrcnn.group_norm, torch.ops.maskrcnn.group_norm_backward
    x, weight, statistics = torch.zeros(2, 4, 4, 64), torch.zeros(64), torch.zeros(2, 2, 32)
    for arguments in (
        (x.transpose(1, 3), weight, weight, None, None, 4, 1e-5, False),
        (x.long(), weight, weight, None, None, 32, 1e-5, False),
        (x, weight.double(), weight, None, None, 32, 1e-5, False),
        (x, weight, weight[::2], None, None, 32, 1e-5, False),
        (x, weight, weight, statistics[:, :1], None, 32, 1e-5, False),
        (x, weight, weight, None, x[:1], 32, 1e-5, False),
        (x, weight, weight, None, x.bfloat16(), 32, 1e-5, False),
    ):
        with pytest.raises(RuntimeError, match="must"):
            forward(*arguments)
    with pytest.raises(RuntimeError, match="groups: 7 of 64"):
        forward(x, weight, weight, None, None, 7, 1e-5, False)
    for grad, own in ((x[:1], statistics), (x.double(), statistics), (x, statistics[0]), (x, statistics.double())):
        with pytest.raises(RuntimeError, match="must"):
            backward(grad, x, weight, weight, own, 1e-5, False, False)
