"""Backbones against torchvision's with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskrcnn.model.resnet import FrozenBatchNorm2d, Norm, ResNet, make_norm

DEPTHS = (18, 34, 50, 101)


def _their_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        features.append(x)
    return features


def _shake_norms(model: nn.Module, seed: int = 0) -> None:
    """Statistics and affine parameters other than 0 and 1, so that a mistake in them would show."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.7, 1.5, generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.4, 0.8, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("norm", ["frozen_batch", "batch", "group"])
@torch.no_grad()
def test_features_as_torchvision(depth: int, norm: Norm) -> None:
    models = pytest.importorskip("torchvision.models")
    if norm == "group" and depth != 50:
        pytest.skip("one depth shows it")
    torch.manual_seed(depth)
    layer = (lambda channels: nn.GroupNorm(32, channels)) if norm == "group" else nn.BatchNorm2d
    theirs = getattr(models, f"resnet{depth}")(weights=None, norm_layer=layer).eval()
    _shake_norms(theirs)
    ours = ResNet(depth, norm).eval()
    result = ours.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}, strict=norm != "frozen_batch"
    )
    assert not result.missing_keys
    assert all(key.endswith("num_batches_tracked") for key in result.unexpected_keys)
    images = torch.randn(2, 3, 64, 96)
    features = ours(images)
    assert [f.shape[1] for f in features] == ours.out_channels
    for level, (own, other) in enumerate(zip(features, _their_features(theirs, images), strict=True)):
        assert own.shape == (2, ours.out_channels[level], 16 // 2**level, 24 // 2**level)
        assert (own - other).abs().max() <= 1e-5 * other.abs().max()


def test_batch_norm_learns_its_statistics() -> None:
    model = ResNet(18, "batch").train()
    before = model.bn1.running_mean.clone()
    model(torch.rand(2, 3, 64, 64))
    assert not torch.equal(model.bn1.running_mean, before)


def test_frozen_norm_is_a_constant() -> None:
    layer = FrozenBatchNorm2d(4, eps=0.0)
    layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    layer.running_var.copy_(torch.tensor([4.0, 4.0, 1.0, 16.0]))
    layer.running_mean.fill_(1.0)
    layer.bias.fill_(0.5)
    out = layer.train()(torch.full((1, 4, 1, 1), 3.0)).flatten()
    assert out.tolist() == [1.5, 2.5, 6.5, 2.5]  # weight * (3 - 1) / sqrt(var) + 0.5
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("norm", ["group", "batch"])
@torch.no_grad()
def test_blocks_start_as_identities(norm: Norm) -> None:
    """The last scale of every residual branch is 0; then layer1's later blocks pass their input on."""
    model = ResNet(50, norm).eval()
    x = torch.rand(1, 256, 8, 8)
    assert torch.equal(model.layer1[1](x), x)
    assert all(bool((block.bn1.weight == 1).all()) for block in model.layer1)


def test_stride_in_1x1() -> None:
    """detectron2's R-50 halves in the first convolution of a stage; the shapes stay."""
    ours, original = ResNet(50, "group"), ResNet(50, "group", stride_in_1x1=True)
    assert (ours.layer2[0].conv1.stride, ours.layer2[0].conv2.stride) == ((1, 1), (2, 2))
    assert (original.layer2[0].conv1.stride, original.layer2[0].conv2.stride) == ((2, 2), (1, 1))
    images = torch.rand(1, 3, 64, 64)
    assert [f.shape for f in ours(images)] == [f.shape for f in original(images)]


@torch.no_grad()
def test_channels_last_stays() -> None:
    images = torch.rand(1, 3, 64, 64)
    for norm in ("group", "batch", "frozen_batch"):
        model = ResNet(18, norm).eval()
        plain = model(images)
        model = model.to(memory_format=torch.channels_last)
        for own, other in zip(model(images.contiguous(memory_format=torch.channels_last)), plain, strict=True):
            assert own.is_contiguous(memory_format=torch.channels_last)
            assert torch.allclose(own, other, atol=1e-5, rtol=1e-4)


def test_eps_reaches_every_norm() -> None:
    norms = [m for m in ResNet(50, "frozen_batch", norm_eps=0.0).modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {m.eps for m in norms} == {0.0}


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="depth is 51"):
        ResNet(51)
    with pytest.raises(ValueError, match="norm is 'layer'"):
        make_norm("layer", 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(("stages", "width"), [(1, 32), (3, 32), (3, 64), (4, 96)])
def test_fewer_stages_and_other_widths(stages: int, width: int) -> None:
    model = ResNet(18, stages=stages, width=width)
    maps = model(torch.rand(1, 3, 64, 96))
    assert [tuple(map_.shape[1:]) for map_ in maps] == [
        (width * 2**stage, 16 // 2**stage, 24 // 2**stage) for stage in range(stages)
    ]
    assert model.out_channels == [map_.shape[1] for map_ in maps]


def test_fewer_stages_are_the_first_ones() -> None:
    torch.manual_seed(0)
    whole, part = ResNet(18), ResNet(18, stages=2)
    part.load_state_dict({key: value for key, value in whole.state_dict().items() if key in part.state_dict()})
    image = torch.rand(1, 3, 64, 64)
    for one, other in zip(part(image), whole(image), strict=False):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", [{"stages": 0}, {"stages": 5}, {"width": 48}])
def test_stages_and_widths_that_cannot_be(options: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        ResNet(18, **options)
