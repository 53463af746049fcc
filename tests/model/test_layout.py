"""Maps stay channels last, and in the convolutions' precision, from the stem to RoIAlign: no copy to another layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn.model import mask_rcnn_resnet_fpn
from maskrcnn.model.resnet import Norm

SIZE = (64, 96)


class Clones(TorchDispatchMode):
    """Counts the copies of maps: what ``contiguous`` does to a tensor of another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.clone.default and args[0].dim() == 4 and args[0].shape[0] == 2:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_maps_stay_channels_last(norm: Norm, depth: int, precision: str) -> None:
    torch.manual_seed(0)
    model = mask_rcnn_resnet_fpn(depth, 2, norm=norm).eval().to(memory_format=torch.channels_last)
    seen: list[tuple[str, Tensor]] = []
    for name, module in [*model.backbone.named_modules(), *model.neck.named_modules()]:
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, out, name=name: seen.append((name, out)))
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0.0, 3, 5, 40, 50], [1, 10, 2, 90, 60]])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), Clones() as copies:
        features = model.features(images, [SIZE] * 2)
        pooled = model.box_head.pool(features, rois, SIZE)
    assert len(seen) > 20
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    for name, out in [*seen, *((f"P{level + 2}", map_) for level, map_ in enumerate(features)), ("RoIs", pooled)]:
        assert out.is_contiguous(memory_format=torch.channels_last), name
        assert out.dtype == expected, name
    assert copies.shapes == []


def test_a_copy_is_counted() -> None:
    with Clones() as copies:
        nn.Identity()(torch.ones(2, 3, 4, 5)).permute(0, 2, 3, 1).contiguous()
    assert copies.shapes == [(2, 4, 5, 3)]
