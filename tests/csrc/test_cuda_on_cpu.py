"""Tests of the CUDA kernels without a GPU: their sources, compiled for the CPU with a few CUDA keywords emulated
thread by thread, must give what the CPU kernels give, without a data race. Speed and the real compiler's arithmetic are
for a GPU to show (``pytest -m cuda``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from maskrcnn import ops  # noqa: F401 (loads the CPU kernels)
from tests.csrc.emulator import Emulator, build_emulator
from tests.ops.test_crop_labels import random_arguments
from tests.ops.test_masks_to_rle import boxes_over, smooth_masks
from tests.ops.test_nms import random_boxes, random_scores
from tests.ops.test_roi_align import random_map, random_rois

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return build_emulator(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated(emulator: Emulator) -> Iterator[object]:
    """The ops; a data race in one of their kernels fails the test."""
    yield emulator.ops
    assert emulator.race() == ""


@pytest.mark.parametrize(
    ("which", "race", "result"),
    [
        (0, "another block", None),  # an addition that is not atomic
        (1, "", 2048),
        (2, "the same block", None),  # no barrier
        (3, "", 0),
        (4, "the same block", None),  # a barrier for a warp, where there are two
        (5, "", 0),
        (6, "another block", None),  # no fence before and after an atomic counter
        (7, "", 20),
        (8, "another block", None),  # nobody waits for the flag
        (9, "", 7),
        (10, "", 0),  # neighbouring bytes
        (11, "", 2),  # one launch after another
    ],
)
def test_races_are_found(emulator: Emulator, which: int, race: str, result: int | None) -> None:
    found = emulator.run_racy(which)
    assert (race in emulator.race()) if race else (emulator.race() == "")
    if result is not None:
        assert found == result


def test_blocks_and_threads_interrupt_one_another(emulator: Emulator) -> None:
    """Additions that are not atomic get lost, as on a GPU."""
    assert 0 < emulator.run_racy(0) < 2048
    emulator.race()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1024, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nms(emulated, count: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    boxes = random_boxes(count, 80, 30, seed=count, dtype=dtype).round()
    scores = random_scores(count, 0, levels=50)
    groups = torch.randint(-1, 3, (count,), generator=torch.Generator().manual_seed(0))
    for idxs in (None, groups):
        for threshold in (0.0, 0.3, 0.7):
            expected = torch.ops.maskrcnn.nms(boxes, scores, idxs, threshold)
            assert all(map(torch.equal, emulated.nms(boxes, scores, idxs, threshold), expected))


def test_nms_of_what_is_rare(emulated) -> None:  # type: ignore[no-untyped-def]
    boxes, scores = random_boxes(700, 60, 20, seed=0), random_scores(700, 0).double()
    scores[::9] = torch.nan
    groups = torch.arange(700) // 100 * 2**40
    for idxs in (None, groups, groups.flip(0)):
        for threshold in (-0.1, 0.5, 1.0):  # below 0, boxes suppress one another that do not touch
            expected = torch.ops.maskrcnn.nms(boxes, scores, idxs, threshold)
            assert all(map(torch.equal, emulated.nms(boxes, scores, idxs, threshold), expected))
    boxes[5, 2], boxes[6] = torch.nan, torch.nan
    kept = _kept(emulated.nms(boxes, scores, None, 0.1))
    assert {5, 6} <= set(kept)  # the host cannot look: a box that is not a number is kept, and suppresses nothing
    others = torch.tensor([i for i in range(700) if i not in (5, 6)])
    kept_of_others = _kept(emulated.nms(boxes[others], scores[others], None, 0.1))
    assert [i for i in kept if i not in (5, 6)] == others[kept_of_others].tolist()


def _kept(result: tuple[Tensor, Tensor]) -> list[int]:
    order, is_kept = result
    return order[is_kept].tolist()


def test_nms_of_many_groups(emulator: Emulator, emulated) -> None:  # type: ignore[no-untyped-def]
    """Groups of all sizes are settled at the same time: no block waits for one of another group."""
    sizes = [600] * 6 + [1] * 40 + [1300, 512, 3, 512]
    groups = torch.cat([torch.full((size,), i * 2**33) for i, size in enumerate(sizes)])
    count = len(groups)
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    boxes, scores = random_boxes(count, 100, 30, seed=0), random_scores(count, 0, levels=400)
    before = [emulator.launches(kernel) for kernel in ("compare_within_tiles", "settle_tiles")]
    ours = emulated.nms(boxes, scores, groups[shuffled], 0.4)
    after = [emulator.launches(kernel) for kernel in ("compare_within_tiles", "settle_tiles")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1]
    assert all(map(torch.equal, ours, torch.ops.maskrcnn.nms(boxes, scores, groups[shuffled], 0.4)))
    assert count > 5000  # 11 tiles
    assert 2 <= emulator.depth() <= 4  # 1300 boxes are in up to 4 tiles


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [False, True])
def test_match_boxes(emulated, allow_low_quality: bool, dtype: torch.dtype, whole: bool) -> None:  # type: ignore[no-untyped-def]
    anchor_counts, target_counts = [200, 0, 90, 257, 1], [33, 5, 0, 300, 1]
    anchors = random_boxes(sum(anchor_counts), 60, 40, 0, dtype)
    targets = random_boxes(sum(target_counts), 60, 40, 1, dtype)
    if whole:  # many equal overlaps
        anchors, targets = (anchors / 8).round() * 8 + 1, (targets / 8).round() * 8 + 1
        anchors[:, 2:] += 8
        targets[:, 2:] += 8
    for high, low in ((0.7, 0.3), (0.5, 0.0)):
        arguments = (anchors, targets, anchor_counts, target_counts, high, low, allow_low_quality)
        assert torch.equal(emulated.match_boxes(*arguments), torch.ops.maskrcnn.match_boxes(*arguments))
    nothing = (anchors[:0], targets[:0], [], [], 0.7, 0.3, allow_low_quality)
    assert emulated.match_boxes(*nothing).shape == (0,)


@pytest.mark.parametrize(("size", "binary"), [(14, False), (5, False), (14, True)])
@pytest.mark.parametrize("aligned", [False, True])
def test_crop_labels(emulated, size: int, binary: bool, aligned: bool) -> None:  # type: ignore[no-untyped-def]
    arguments = random_arguments(40, 50, 60)
    ours = emulated.crop_labels(*arguments, size, binary, aligned)
    expected = torch.ops.maskrcnn.crop_labels(*arguments, size, binary, aligned)
    assert torch.isclose(ours, expected, rtol=1e-4, atol=1e-5).float().mean() > 0.999
    planes, rois, plane, ids = arguments
    assert not emulated.crop_labels(planes, rois, plane + 3, ids, size, binary, aligned).any()  # no such plane


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


# One window of taps is not enough, or one block: many points, bins, pixels, channels
LARGE = {
    "points": ((9, 9), (3, 2), 300, False, 4),
    "points_per_pixel": ((300, 3), (20, 1), 0, True, 4),
    "rows": ((9, 9), (70, 2), 2, False, 4),
    "columns": ((9, 40), (2, 300), 2, True, 1),
    "columns_of_blocks": ((9, 9), (2, 40), 3, True, 36),
    "channels": ((9, 9), (2, 3), 2, True, 700),
    "a_pixel_of_many_bins": ((2, 2), (9, 33), 2, False, 8),
}


@pytest.mark.parametrize("case", LARGE)
def test_roi_align_of_much(emulated, case: str) -> None:  # type: ignore[no-untyped-def]
    (height, width), (size_h, size_w), ratio, aligned, channels = LARGE[case]
    maps, rois = [random_map(1, height, width, channels)], random_rois(4, 1, max(height, width))
    rois[1, 1:] = torch.tensor([-2.0, -3, width + 1, height + 4])
    forward = (rois, torch.zeros(4, dtype=torch.int64), [1.0])
    ours = emulated.roi_align(maps, *forward, size_h, size_w, ratio, aligned)
    expected = torch.ops.maskrcnn.roi_align(maps, *forward, size_h, size_w, ratio, aligned)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    backward = (random_map(*ours.shape), *forward, 1, [height], [width], ratio, aligned)
    expected = torch.ops.maskrcnn.roi_align_backward(*backward, False)
    for deterministic in (False, True):
        torch.testing.assert_close(
            emulated.roi_align_backward(*backward, deterministic), expected, rtol=1e-5, atol=1e-4
        )


def test_roi_align_backward_is_deterministic(emulated) -> None:  # type: ignore[no-untyped-def]
    """Whatever the order of blocks and threads, which differs from call to call."""
    rois = random_rois(260, 1, 6)
    backward = (random_map(260, 2, 2, 4), rois, torch.zeros(260, dtype=torch.int64), [1.0], 1, [6], [6], 2, True)
    first = emulated.roi_align_backward(*backward, True)[0]
    assert torch.equal(emulated.roi_align_backward(*backward, True)[0], first)
    assert not torch.equal(emulated.roi_align_backward(*backward, False)[0], first)


@pytest.mark.parametrize(("side", "fewer"), [(7, 8), (14, 3), (21, 1.5)])
def test_roi_align_backward_adds_each_pixel_once(emulator: Emulator, emulated, side: float, fewer: float) -> None:  # type: ignore[no-untyped-def]
    """A RoI of so many pixels, in 7 x 7 bins of 2 x 2 points with 4 pixels each."""
    roi = torch.tensor([[0.0, 3.3, 4.1, 3.3 + side, 4.1 + side]])
    before = emulator.atomics()
    emulated.roi_align_backward(
        random_map(1, 7, 7, 4), roi, torch.zeros(1, dtype=torch.int64), [1.0], 1, [40], [40], 2, True, False
    )
    pixels = 7 * 7 * 2 * 2 * 4
    # others: one for each column, to list it
    assert (emulator.atomics() - before - (side + 1)) / 4 <= pixels / fewer


@pytest.mark.parametrize("channels", [16, 12, 5])  # two vectors, one in the gradient alone, none
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_of_16_bits(emulated, channels: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    """As exact as float32 rounded once at the end, though no map is made float32."""
    maps = [random_map(2, h, w, channels).to(dtype) for h, w in ((13, 11), (7, 5))]
    arguments = (random_rois(12, 2, 13), torch.arange(12) % 2, [1.0, 0.5])
    expected = torch.ops.maskrcnn.roi_align([m.float() for m in maps], *arguments, 3, 2, 2, True)
    ours = emulated.roi_align(maps, *arguments, 3, 2, 2, True)
    torch.testing.assert_close(ours, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(emulated.roi_align([_off_its_place(m) for m in maps], *arguments, 3, 2, 2, True), ours)
    grad = random_map(*ours.shape).to(dtype)
    sizes = (2, [13, 7], [11, 5], 2, True)
    sums = torch.ops.maskrcnn.roi_align_backward(grad.float(), *arguments, *sizes, True)
    for deterministic in (False, True):
        for gradient in (grad, _off_its_place(grad)):
            ours = emulated.roi_align_backward(gradient, *arguments, *sizes, deterministic)
            for a, b in zip(ours, sums, strict=True):
                torch.testing.assert_close(a, b.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)


def _off_its_place(tensor: Tensor) -> Tensor:
    """The same tensor at an address that no vector can be loaded from."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


def test_roi_align_of_what_the_host_cannot_check(emulated) -> None:  # type: ignore[no-untyped-def]
    nan, inf = torch.nan, torch.inf
    rois = torch.tensor([[5.0, 0, 0, 3, 3], [0, nan, 0, 3, 3], [0, 0, 0, inf, 3], [nan, 0, 0, 2, 2], [-1, 0, 0, 2, 2]])
    maps = [random_map(2, 9, 9, 4)]
    out = emulated.roi_align(maps, rois, torch.zeros(5, dtype=torch.int64), [1.0], 2, 2, 0, False)
    assert not out.any()
    assert not emulated.roi_align(maps, torch.zeros(1, 5), torch.tensor([7]), [1.0], 2, 2, 0, False).any()


@pytest.mark.parametrize(("height", "width", "size"), [(40, 33, 28), (7, 300, 14), (64, 64, 1)])
@pytest.mark.parametrize("threshold", [0.5, 0.0])
@pytest.mark.parametrize("aligned", [False, True])
def test_mask_runs(emulated, height: int, width: int, size: int, threshold: float, aligned: bool) -> None:  # type: ignore[no-untyped-def]
    masks, boxes = smooth_masks(120, seed=height, size=size), boxes_over(height, width, 120, seed=1)
    masks[::11] = 1.0
    masks[1::11, size // 2 :] = torch.nan
    masks[2::11] = 0.0
    boxes[::5] = torch.tensor([-20.0, -20, width + 20, height + 20])  # whole columns
    boxes[3::25] = torch.tensor([-1e30, 5, 3e38, 3e38])
    boxes[4::25] = torch.tensor([width + 9.0, 0, width + 20, 9])
    boxes[6::25] = torch.tensor([3.0, -30, 6, 50 + height])
    boxes[7::25] = torch.tensor([5.0, 5, 2, 1])
    boxes[8::25] = torch.tensor([3.4e38, -3.4e38, 3.3e38, 3.4e38])
    boxes[9::25] = torch.tensor([2.0, 2, 2, 6])
    boxes[11::25] = boxes[11::25].round()
    arguments = (masks, boxes, height, width, threshold, aligned)
    runs, ends = emulated.mask_runs(*arguments)
    expected_runs, expected_ends = torch.ops.maskrcnn.mask_runs(*arguments)
    assert torch.equal(ends, expected_ends)
    assert torch.equal(runs, expected_runs)


@pytest.mark.parametrize("aligned", [False, True])
def test_mask_runs_of_what_is_rare(emulated, aligned: bool) -> None:  # type: ignore[no-untyped-def]
    nan, inf = torch.nan, torch.inf
    boxes = torch.tensor([[0.0, 0, nan, 5], [-inf, 0, 4, 4], [-5, -5, 20, 20], [0, 0, 3, inf]])
    runs, ends = emulated.mask_runs(torch.ones(4, 28, 28), boxes, 5, 4, 0.5, aligned)
    assert runs.tolist() == [20, 20, 0, 20, 20]  # a box that is not finite has no pixels
    assert ends.tolist() == [1, 2, 4, 5]
    runs, ends = emulated.mask_runs(torch.ones(0, 28, 28), torch.ones(0, 4), 5, 4, 0.5, aligned)
    assert runs.shape == ends.shape == (0,)
    far = torch.tensor([[2.0**31 - 9, 2.0**31 - 9, 2.0**31, 2.0**31]])  # places beyond 32 bits
    ours, expected = (
        library.mask_runs(torch.ones(1, 28, 28), far, 2**31 - 1, 2**31 - 1, 0.5, aligned)[0]
        for library in (emulated, torch.ops.maskrcnn)
    )
    assert torch.equal(ours, expected)
    assert ours.sum() == (2**31 - 1) ** 2


# 96 channels: some threads own nothing; 33: no vectors; 2,100: more vectors than a block has threads
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 33, 17, 64), 32), ((1, 1, 1, 32), 4), ((3, 30, 31, 96), 4), ((2, 5, 7, 33), 3), ((1, 3, 2, 2100), 3)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_group_norm(emulated, shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    maps, residual, grad = (random_map(*shape, seed=seed).to(dtype) + 3 * (seed == 0) for seed in range(3))
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (random_map(shape[3], seed=seed).to(kind) for seed in (3, 4))
    close = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 2e-5}
    given = torch.rand(2, shape[0], groups, generator=torch.Generator().manual_seed(0)).to(kind)
    for statistics in (None, given):
        for added in (None, residual):
            for relu in (False, True):
                arguments = (weight, bias, statistics, added, groups, 1e-5, relu)
                ours = emulated.group_norm(maps, *arguments)
                expected = torch.ops.maskrcnn.group_norm(maps, *arguments)
                torch.testing.assert_close(ours[0], expected[0], **close)
                torch.testing.assert_close(ours[1], expected[1], rtol=1e-5, atol=1e-6)
                if added is None:
                    moved = emulated.group_norm(_off_its_place(maps), *arguments)[0]
                    torch.testing.assert_close(moved, expected[0], **close)
        for relu in (False, True):
            arguments = (weight, bias, expected[1], 1e-5, relu, statistics is not None)
            ours = emulated.group_norm_backward(grad, maps, *arguments)
            expected_gradients = torch.ops.maskrcnn.group_norm_backward(grad, maps, *arguments)
            for a, b in zip(ours, expected_gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=max(close["rtol"], 1e-4), atol=1e-4 * float(1 + b.abs().max()))


def test_group_norm_far_from_0(emulated) -> None:  # type: ignore[no-untyped-def]
    maps = random_map(1, 60, 50, 64, dtype=torch.float64) + 1000
    maps[:, :5] = 0  # the first pixels are no guide to the mean
    weight, bias = torch.ones(64), torch.zeros(64)
    ours = emulated.group_norm(maps.float(), weight, bias, None, None, 32, 1e-5, False)
    variance, mean = torch.var_mean(maps.view(1, -1, 32, 2), dim=(1, 3), correction=0)
    torch.testing.assert_close(ours[1].double(), torch.stack([mean, variance]), rtol=1e-5, atol=0)


def test_group_norm_of_nothing(emulated) -> None:  # type: ignore[no-untyped-def]
    weight = torch.ones(64)
    for shape in ((0, 4, 4, 64), (2, 0, 4, 64)):
        maps = torch.ones(shape)
        out, statistics = emulated.group_norm(maps, weight, weight, None, None, 32, 1e-5, True)
        assert out.shape == shape
        gradients = emulated.group_norm_backward(maps, maps, weight, weight, statistics, 1e-5, True, False)
        assert gradients[0].shape == shape
        assert not gradients[1].any()
        assert not gradients[2].any()
