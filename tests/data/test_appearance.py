"""Augmentation of appearance: hand-computed values, skimage, scipy and Pillow as witnesses, labels untouched."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color
from torch import Tensor

from maskrcnn.data import appearance as A
from maskrcnn.data.dataset import Transform
from maskrcnn.data.sample import Sample
from maskrcnn.engine.config import DataOptions
from maskrcnn.engine.datasets import training_transform
from maskrcnn.structures import InstanceLabels

ALWAYS = [
    A.ColorJitter(0.3, 0.3, 0.3),
    A.Invert(1.0),
    A.Gamma(0.5),
    A.StainJitter(0.3),
    A.Blur(1.0, sigma=2.0),
    A.Noise(1.0, strength=0.1),
    A.ToGrey(1.0),
]
KEEP_GREY = [transform for transform in ALWAYS if not isinstance(transform, (A.StainJitter, A.ToGrey))]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sample_of(image: Tensor) -> Sample:
    planes = torch.zeros(1, *image.shape[:2], dtype=torch.int32)
    planes[0, : len(image) // 2] = 1
    return Sample(image, InstanceLabels.from_planes(planes, [1]), "x", 1)


def coloured(height: int = 30, width: int = 40) -> Sample:
    return sample_of(torch.from_numpy(rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)))


def grey(height: int = 30, width: int = 40) -> Sample:
    values = torch.from_numpy(rng(8).integers(0, 256, (height, width, 1), dtype=np.uint8))
    return sample_of(values.repeat(1, 1, 3))


def is_grey(image: Tensor) -> bool:
    return bool((image == image[..., :1]).all())


@pytest.mark.parametrize("transform", ALWAYS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("size", [(30, 40), (1, 1), (2, 50)])
def test_the_image_changes_and_nothing_else(transform: Transform, size: tuple[int, int]) -> None:
    sample = coloured(*size)
    before = sample.image.clone()
    changed = transform(sample, rng(2))
    assert changed.labels is sample.labels
    assert (changed.name, changed.image_id) == (sample.name, sample.image_id)
    assert changed.image.dtype == torch.uint8
    assert changed.image.shape == sample.image.shape
    assert changed.image.is_contiguous()
    assert torch.equal(sample.image, before)
    if size == (30, 40):
        assert not torch.equal(changed.image, before)


@pytest.mark.parametrize("transform", [t for t in ALWAYS if not isinstance(t, (A.Invert, A.ToGrey))])
def test_the_outcome_depends_on_the_seed_alone(transform: Transform) -> None:
    a, b, c = (transform(coloured(), rng(seed)).image for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("transform", KEEP_GREY, ids=lambda t: type(t).__name__)
def test_grey_stays_grey(transform: Transform) -> None:
    changed = transform(grey(), rng(2)).image
    assert is_grey(changed)
    assert not torch.equal(changed, grey().image)


@pytest.mark.parametrize("transform", [A.StainJitter(0.3), A.ToGrey(1.0)])
def test_grey_has_neither_stains_nor_colours(transform: Transform) -> None:
    assert torch.equal(transform(grey(), rng(1)).image, grey().image)


@pytest.mark.parametrize(
    "kind", [A.Invert, partial(A.Blur, sigma=50.0), partial(A.Noise, strength=1.0), A.ToGrey], ids=str
)
def test_probability_is_the_share_of_changed_pictures(kind: type) -> None:
    sample = coloured(4, 4)
    for probability, low, high in ((0.0, 0, 0), (0.3, 60, 120), (1.0, 290, 300)):  # slight blur and noise round away
        changed = sum(not torch.equal(kind(probability)(sample, rng(k)).image, sample.image) for k in range(300))
        assert low <= changed <= high


def test_color_jitter_of_nothing_is_the_identity() -> None:
    assert torch.equal(A.ColorJitter(0, 0, 0)(coloured(), rng(1)).image, coloured().image)


def test_invert() -> None:
    image = torch.tensor([[[0, 100, 255], [1, 2, 3]]], dtype=torch.uint8)
    assert A.Invert(1.0)(sample_of(image), rng()).image.tolist() == [[[255, 155, 0], [254, 253, 252]]]


def test_gamma_is_a_power_of_the_intensity() -> None:
    image = torch.arange(256, dtype=torch.uint8)[None, :, None].repeat(1, 1, 3)
    exponents = []
    for seed in range(200):
        curve = A.Gamma(0.5)(sample_of(image), rng(seed)).image[0, :, 0].double()
        assert curve[0] == 0
        assert curve[255] == 255
        exponent = float(torch.log(curve[51] / 255) / np.log(0.2))
        exponents.append(exponent)
        expected = 255 * (torch.arange(256) / 255).double() ** exponent
        assert (curve - expected).abs().max() <= 2  # the exponent is estimated from a rounded value
    assert np.exp(-0.51) < min(exponents) < np.exp(-0.45)
    assert np.exp(0.45) < max(exponents) < np.exp(0.53)
    assert abs(np.mean(np.log(exponents))) < 0.07


def test_stain_jitter_scales_and_shifts_skimages_stains() -> None:
    """Pictures mixed from known amounts of stain come back as if mixed from the changed amounts."""
    unit = -np.log(1e-6)  # skimage's amounts count in this, ours in optical density
    stains = rng(3).uniform(0.05, 0.8, (40, 50, 3)) * [1.0, 1.0, 0.3]
    image = torch.from_numpy(np.round(255 * color.hed2rgb(stains / unit)).astype(np.uint8))
    for seed in range(10):
        changed = A.StainJitter(0.2)(sample_of(image), rng(seed)).image
        generator = rng(seed)
        scale, shift = generator.uniform(0.8, 1.2, 3), generator.uniform(-0.02, 0.02, 3)
        expected = 255 * color.hed2rgb((color.rgb2hed(image.numpy()) * unit * scale + shift) / unit)
        # rgb2hed cuts negative amounts off, which rounding to uint8 makes of the smallest
        assert np.abs(changed.numpy() - expected).max() <= 1.0
        assert np.abs(changed.numpy() - image.numpy().astype(float)).max() > 3


def test_stain_jitter_of_nothing_is_the_identity() -> None:
    image = coloured().image.clamp(min=1)
    assert torch.equal(A.StainJitter(0.0)(sample_of(image), rng()).image, image)


@pytest.mark.parametrize("size", [(30, 40), (3, 5)])
def test_blur_is_scipys_gaussian_filter(size: tuple[int, int]) -> None:
    sample = coloured(*size)
    for seed in range(20):
        blurred = A.Blur(1.0, sigma=2.0)(sample, rng(seed)).image.numpy()
        generator = rng(seed)
        generator.random()
        sigma = 2.0 * (1 - generator.random())
        expected = ndimage.gaussian_filter(
            sample.image.numpy().astype(np.float64), (sigma, sigma, 0), mode="nearest", truncate=3.0
        )
        assert np.abs(blurred - expected).max() <= 0.5 + 1e-3


def test_noise_has_its_deviation_and_no_bias() -> None:
    middle = torch.full((200, 200, 3), 128, dtype=torch.uint8)
    middle[0, 0, 0] = 129  # not grey
    deviations = []
    for seed in range(30):
        noise = A.Noise(1.0, strength=0.1)(sample_of(middle), rng(seed)).image.double() - 128
        assert abs(float(noise.mean())) < 0.5
        assert abs(float((noise[..., 0] * noise[..., 1]).mean())) < 0.05 * float(noise.var()) + 0.01  # independent
        deviations.append(float(noise.std()))
    assert max(deviations) < 26  # 0.1 * 255 is 25.5
    assert max(deviations) > 20
    assert min(deviations) < 5


def test_noise_is_cut_off_at_black_and_white() -> None:
    image = torch.zeros(50, 50, 3, dtype=torch.uint8)
    image[:25] = 255
    noisy = A.Noise(1.0, strength=0.1)(sample_of(image), rng(2)).image
    assert noisy[:25].min() > 100
    assert noisy[25:].max() < 155


def test_to_grey_is_pillows_luminance() -> None:
    image = coloured().image
    result = A.ToGrey(1.0)(sample_of(image), rng()).image
    expected = np.asarray(Image.fromarray(image.numpy()).convert("L"))
    assert is_grey(result)
    assert np.abs(result[..., 0].numpy().astype(int) - expected).max() <= 1
    assert A.ToGrey(1.0)(sample_of(torch.tensor([[[255, 0, 0]]], dtype=torch.uint8)), rng()).image[0, 0, 0] == 76


def test_levels() -> None:
    assert A.appearance("none", 0.2) == []
    assert A.appearance("light", 0.0) == []
    assert A.appearance("light", 0.2) == [A.ColorJitter(0.2, 0.2, 0.2)]
    strong = A.appearance("strong", 0.2)
    assert {type(t) for t in strong} == {type(t) for t in ALWAYS}
    assert A.appearance("strong", 0.0) == [t for t in strong if not isinstance(t, A.ColorJitter)]


def test_training_uses_the_level_of_its_options() -> None:
    for options in (DataOptions(), DataOptions(color_jitter=0.0), DataOptions(appearance="strong")):
        expected = A.appearance(options.appearance, options.color_jitter)
        assert list(training_transform(options).transforms[3:]) == expected
