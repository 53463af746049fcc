"""RoIAlign against torchvision, against its definition in float64, and against numerical gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskrcnn import ops


def random_map(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_rois(count: int, batch: int, extent: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """[K, 5]; some reach far beyond a picture of ``extent`` pixels, some are upside down, some have no area."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent * 1.4 - 0.2 * extent
    side = torch.rand(count, 2, generator=generator) ** 2 * extent - 0.05 * extent
    side[::7] = 0
    image = torch.randint(0, batch, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + side], dim=1).to(dtype)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


ARGUMENTS = [
    (size, scale, ratio, aligned)
    for size in (7, (3, 5), 1)
    for scale in (1.0, 0.25)
    for ratio in (-1, 0, 2, 3)
    for aligned in (False, True)
]


@pytest.mark.parametrize(("size", "scale", "ratio", "aligned"), ARGUMENTS)
@pytest.mark.parametrize("channels", [5, 40])  # fewer than a vector, and some left over after whole ones
def test_equals_torchvision(
    size: int | tuple[int, int], scale: float, ratio: int, aligned: bool, channels: int, threads: int
) -> None:
    torchvision = pytest.importorskip("torchvision")
    features = random_map(2, channels, 19, 23)
    rois = random_rois(30, 2, 23 / scale)
    if aligned:  # torchvision asks for a negative number of samples where a box is upside down
        rois[:, 3:] = torch.maximum(rois[:, 1:3], rois[:, 3:])
    ours_in, theirs_in = features.clone().requires_grad_(), features.clone().requires_grad_()
    ours = ops.roi_align(ours_in, rois, size, scale, ratio, aligned)
    theirs = torchvision.ops.roi_align(theirs_in, rois, size, scale, ratio, aligned)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    upstream = random_map(*ours.shape, seed=1)
    ours.backward(upstream)
    theirs.backward(upstream)
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(("size", "scale", "ratio", "aligned"), ARGUMENTS)
def test_equals_its_definition_in_float64(size: int | tuple[int, int], scale: float, ratio: int, aligned: bool) -> None:
    features = random_map(2, 6, 17, 13, dtype=torch.float64)
    rois = random_rois(25, 2, 17 / scale, dtype=torch.float64)
    ours = ops.roi_align(features, rois, size, scale, ratio, aligned)
    expected = ops.roi_align_reference(features, rois, size, scale, ratio, aligned)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_by_hand() -> None:
    """A ramp along x: the mean of samples at x = 0.5 + ... is their position, half a pixel less when aligned."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    roi = torch.tensor([[0.0, 2, 2, 6, 6]])
    assert ops.roi_align(ramp, roi, (1, 2)).flatten().tolist() == [3.0, 5.0]
    assert ops.roi_align(ramp, roi, (1, 2), aligned=True).flatten().tolist() == [2.5, 4.5]


def test_gradients() -> None:
    features = random_map(2, 3, 7, 6, dtype=torch.float64).requires_grad_()
    rois = random_rois(6, 2, 7, dtype=torch.float64)
    for ratio, aligned in ((2, False), (-1, True)):
        assert torch.autograd.gradcheck(lambda x: ops.roi_align(x, rois, 3, 0.9, ratio, aligned), (features,))  # noqa: B023


def test_gradients_of_a_pyramid() -> None:
    maps = [
        random_map(2, 3, *size, dtype=torch.float64, seed=i).requires_grad_() for i, size in enumerate([(8, 8), (4, 4)])
    ]
    rois = random_rois(8, 2, 16, dtype=torch.float64)

    def pool(*features: Tensor) -> Tensor:
        return ops.multilevel_roi_align(features, rois, 2, [0.5, 0.25], canonical_size=8, canonical_level=3)

    assert len(ops.roi_levels(rois, 2, 8, 3).unique()) == 2
    assert torch.autograd.gradcheck(pool, maps)


@pytest.mark.parametrize("shape", [(1, 8, 90, 700), (2, 70, 40, 33), (1, 3, 1, 1500)])
def test_gradients_over_several_tiles_equal_torchvision(shape: tuple[int, ...]) -> None:
    """Maps larger than what a thread sums at a time, with RoIs across the seams."""
    torchvision = pytest.importorskip("torchvision")
    features = random_map(*shape)
    rois = random_rois(60, shape[0], max(shape[2:]))
    ours_in, theirs_in = features.clone().requires_grad_(), features.clone().requires_grad_()
    ours, theirs = ops.roi_align(ours_in, rois, 5), torchvision.ops.roi_align(theirs_in, rois, 5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-4)
    upstream = random_map(*ours.shape, seed=1)
    ours.backward(upstream)
    theirs.backward(upstream)
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-4, atol=5e-4)


def test_gradients_do_not_depend_on_threads() -> None:
    features, rois = random_map(1, 64, 30, 30), random_rois(100, 1, 30)
    results = []
    before = torch.get_num_threads()
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        x = features.clone().requires_grad_()
        ops.roi_align(x, rois, 7).square().sum().backward()
        results.append(x.grad)
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_memory_formats_agree() -> None:
    features, rois = random_map(2, 24, 20, 20), random_rois(20, 2, 20)
    plain = ops.roi_align(features, rois, 7)
    last = ops.roi_align(features.to(memory_format=torch.channels_last), rois, 7)
    view = ops.roi_align(random_map(2, 24, 20, 40)[..., ::2], rois, 7)
    assert torch.equal(plain, last)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(view, ops.roi_align(random_map(2, 24, 20, 40)[..., ::2].contiguous(), rois, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [5, 40, 72])
def test_16_bits_are_summed_in_float32_and_rounded_once(dtype: torch.dtype, channels: int) -> None:
    features, rois = random_map(2, channels, 20, 20).to(dtype), random_rois(20, 2, 20)
    narrow, wide = features.clone().requires_grad_(), features.float().requires_grad_()
    ours, expected = ops.roi_align(narrow, rois, 7), ops.roi_align(wide, rois, 7)
    assert ours.dtype == dtype
    assert torch.equal(ours, expected.to(dtype))
    upstream = random_map(*ours.shape, seed=1).to(dtype)
    ours.backward(upstream)
    expected.backward(upstream.float())
    assert narrow.grad.dtype == dtype
    assert torch.equal(narrow.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read_and_written_as_it_is(dtype: torch.dtype) -> None:
    """A RoI of one pixel with one sample at its centre copies the pixel: infinities and the smallest numbers too."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    features = numbers.view(1, 64, 32, 32)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    rois = torch.stack([torch.zeros(32, 32), x, y, x + 1, y + 1], dim=2).view(-1, 5)
    copied = ops.roi_align(features, rois, 1, sampling_ratio=1, aligned=True).view(32, 32, 64).permute(2, 0, 1)
    torch.testing.assert_close(copied, features[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_leaves_features_and_coordinates_as_they_are(dtype: torch.dtype) -> None:
    features, rois = random_map(1, 8, 20, 20).to(dtype), random_rois(20, 1, 2000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.roi_align(features, rois, 7, 0.01)
    assert inside.dtype == dtype
    assert torch.equal(inside, ops.roi_align(features, rois, 7, 0.01))


def test_a_list_of_boxes_and_none() -> None:
    features, rois = random_map(2, 4, 10, 10), random_rois(9, 2, 10)
    rois = rois[rois[:, 0].argsort(stable=True)]
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    assert torch.equal(ops.roi_align(features, boxes, 2), ops.roi_align(features, rois, 2))
    x = features.clone().requires_grad_()
    nothing = ops.roi_align(x, torch.empty(0, 5), 2)
    assert nothing.shape == (0, 4, 2, 2)
    nothing.sum().backward()
    assert not x.grad.any()


coordinate = st.floats(-(2.0**99), 2.0**99, width=32)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(*[coordinate] * 4), max_size=4), st.integers(-1, 3), st.booleans())
def test_any_finite_box_is_safe(rows: list, ratio: int, aligned: bool) -> None:
    """However large or far away: it ends, and the result is within the range of the features."""
    features = random_map(1, 3, 9, 8)
    rois = torch.cat([torch.zeros(len(rows), 1), torch.tensor(rows).reshape(-1, 4)], dim=1)
    out = ops.roi_align(features, rois, 2, 1.0, ratio, aligned)
    assert out.isfinite().all()
    if out.numel():
        assert out.abs().max() <= features.abs().max() * 1.001


def test_levels_follow_equation_1() -> None:
    """FPN, equation 1: a RoI of 224 pixels belongs to P4, half of it to P3; everything is kept within P2..P5."""
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 5000])
    rois = torch.stack([torch.zeros(8), torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert ops.roi_levels(rois, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_16_bit_rois_are_measured_in_float32() -> None:
    roi = torch.tensor([[0.0, 0, 0, 300, 300]])
    for dtype in (torch.float16, torch.bfloat16):
        assert ops.roi_levels(roi.to(dtype), 4).tolist() == ops.roi_levels(roi, 4).tolist() == [2]
    features = random_map(300, 1, 2, 2)
    boxes = [torch.empty(0, 4)] * 299 + [torch.tensor([[0.0, 0, 2, 2]])]
    wanted = ops.roi_align(features, boxes, 1)
    assert torch.equal(ops.roi_align(features, [b.bfloat16() for b in boxes], 1), wanted)  # image 299, not 300


def test_roi_that_is_not_finite_is_named_before_its_level() -> None:
    with pytest.raises(RuntimeError, match="roi 0 has a coordinate that is not finite"):
        ops.multilevel_roi_align([random_map(1, 3, 8, 8)], torch.tensor([[0.0, 0, 0, torch.nan, 2]]), 2, [1.0])


def test_multilevel_equals_torchvision() -> None:
    poolers = pytest.importorskip("torchvision.ops.poolers")
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    features = [random_map(2, 12, 256 // stride, 320 // stride, seed=stride) for stride in (4, 8, 16, 32)]
    rois = random_rois(200, 2, 300)
    rois[:, 3:] = torch.maximum(rois[:, 3:], rois[:, 1:3] + 0.5)
    rois = rois[rois[:, 0].argsort(stable=True)]
    pool = poolers.MultiScaleRoIAlign([str(i) for i in range(4)], 7, 2)
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    theirs_in = [f.clone().requires_grad_() for f in features]
    ours_in = [f.clone().requires_grad_() for f in features]
    theirs = pool({str(i): f for i, f in enumerate(theirs_in)}, boxes, [(256, 320)] * 2)
    ours = ops.multilevel_roi_align(ours_in, rois, 7, scales)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    upstream = random_map(*ours.shape, seed=9)
    ours.backward(upstream)
    theirs.backward(upstream)
    for a, b in zip(ours_in, theirs_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_bad_scales_of_a_pyramid_are_named() -> None:
    with pytest.raises(ValueError, match="scales is nan; expected above 0 and at most 1000000"):
        ops.multilevel_roi_align([torch.zeros(1, 3, 4, 4)] * 2, torch.zeros(2, 5), 2, [1.0, torch.nan])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 4, 4)}, "input is"),
        ({"input": torch.zeros(1, 3, 4, 4, dtype=torch.int64)}, "input is"),
        ({"boxes": torch.zeros(2, 4)}, "boxes has shape"),
        ({"boxes": torch.tensor([[1.0, 0, 0, 2, 2]])}, "roi 0 is of image 1, the batch has 1"),
        ({"boxes": torch.tensor([[-1.0, 0, 0, 2, 2]])}, "roi 0 is of image -1"),
        ({"boxes": torch.tensor([[0.0, 0, 0, torch.nan, 2]])}, "not finite"),
        ({"boxes": torch.tensor([[0.0, 0, 0, torch.inf, 2]])}, "not finite"),
        ({"output_size": 0}, "output_size: 0 x 0; expected 1 to 1048575"),
        ({"output_size": (3,)}, r"output_size is \(3,\)"),
        ({"input": torch.zeros(1, 3, 0, 4)}, "features: 0 x 4"),
        ({"spatial_scale": torch.nan}, "spatial_scale is nan; expected above 0 and at most 1000000"),
        ({"spatial_scale": torch.inf}, "spatial_scale is inf; expected above 0"),
        ({"spatial_scale": 0.0}, r"spatial_scale is 0\.0; expected above 0"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"input": torch.zeros(1, 3, 4, 4), "boxes": torch.zeros(2, 5), "output_size": 2} | change
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.roi_align(**arguments)


def test_maps_of_different_dtypes_are_refused() -> None:
    maps = [random_map(1, 3, 8, 8), random_map(1, 3, 4, 4).bfloat16()]
    with pytest.raises(RuntimeError, match="features must have the dtype of one another"):
        ops.multilevel_roi_align(maps, random_rois(4, 1, 8), 2, [1.0, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(dtype: torch.dtype) -> None:
    maps = [random_map(1, 6, 6, 3).to(dtype).requires_grad_(), random_map(1, 3, 3, 3).to(dtype).requires_grad_()]
    rois, level = random_rois(5, 1, 6), torch.tensor([0, 1, 0, 1, 0])
    torch.library.opcheck(torch.ops.maskrcnn.roi_align.default, (maps, rois, level, [1.0, 0.5], 2, 3, 2, False))
    grad = random_map(5, 2, 3, 3).to(dtype)
    arguments = (grad, rois, level, [1.0, 0.5], 1, [6, 3], [6, 3], 2, False, False)
    torch.library.opcheck(torch.ops.maskrcnn.roi_align_backward.default, arguments)


def test_export_traces_through() -> None:
    class Pool(torch.nn.Module):
        def forward(self, features: Tensor, rois: Tensor) -> Tensor:
            return ops.roi_align(features, rois, 7, 0.5, 2) * 2

    features, rois = random_map(1, 8, 16, 16), random_rois(10, 1, 32)
    count = torch.export.Dim("rois", min=2, max=4096)
    exported = torch.export.export(Pool(), (features, rois), dynamic_shapes=(None, {0: count}))
    more = random_rois(17, 1, 32, seed=4)
    torch.testing.assert_close(exported.module()(features, more), Pool()(features, more))


@pytest.mark.cuda
@pytest.mark.parametrize(("size", "scale", "ratio", "aligned"), ARGUMENTS)
@pytest.mark.parametrize("channels", [5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda_equals_cpu(
    size: int | tuple[int, int],
    scale: float,
    ratio: int,
    aligned: bool,
    channels: int,
    dtype: torch.dtype,
    deterministic: bool,
) -> None:
    features, rois = random_map(2, channels, 19, 23).to(dtype), random_rois(30, 2, 23 / scale)
    cpu, cuda = features.clone().requires_grad_(), features.cuda().requires_grad_()
    expected = ops.roi_align(cpu, rois, size, scale, ratio, aligned)
    torch.use_deterministic_algorithms(deterministic)
    try:
        ours = ops.roi_align(cuda, rois.cuda(), size, scale, ratio, aligned)
        upstream = random_map(*ours.shape, seed=1).to(dtype)
        expected.backward(upstream)
        ours.backward(upstream.cuda())
    finally:
        torch.use_deterministic_algorithms(False)
    last_bit = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(ours.cpu(), expected, rtol=last_bit, atol=2e-5)
    torch.testing.assert_close(cuda.grad.cpu(), cpu.grad, rtol=last_bit, atol=5 * last_bit)
