"""Augmentation of an image's appearance: colours, stains, contrast, sharpness and noise. Labels are unchanged.

Each transform is a callable ``(sample, rng) -> sample`` whose result depends only on its arguments. The image of the
result is uint8 [H, W, 3], contiguous; the input is not modified.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskrcnn.data.dataset import Transform
from maskrcnn.data.sample import Sample

# Optical density per unit of stain in R, G, B: haematoxylin, eosin, DAB (Ruifrok & Johnston 2001, Quantification of
# histochemical staining by color deconvolution).
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B, as in ITU-R BT.601


def appearance(level: Literal["none", "light", "strong"], color_jitter: float) -> list[Transform]:
    """The appearance transforms of a training level, in the order of image formation: stain, light, optics, sensor.

    Args:
        level: light: only :class:`ColorJitter`. strong: all transforms of this file, for models that must generalize to
            laboratories and modalities that are not in the training data.
        color_jitter: brightness, contrast and saturation of :class:`ColorJitter`; 0 disables it.
    """
    jitter: list[Transform] = [ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter > 0 else []
    if level == "none":
        return []
    if level == "light":
        return jitter
    return [
        StainJitter(0.2),
        *jitter,
        Gamma(0.5),
        ToGrey(0.1),
        Invert(0.1),
        Blur(0.2, sigma=1.5),
        Noise(0.3, strength=0.03),
    ]


@dataclass(frozen=True)
class ColorJitter:
    """Multiply brightness, contrast and saturation by random factors 1 - x .. 1 + x."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        brightness, contrast, saturation = (
            float(rng.uniform(1 - x, 1 + x)) for x in (self.brightness, self.contrast, self.saturation)
        )
        image = sample.image.float()
        # All three in one affine map: saturation mixes a pixel with its grey value, contrast with the mean grey.
        red, green, blue = image.unbind(2)
        grey = (red + green + blue) / 3
        offset = brightness * (contrast * (1 - saturation) * grey + (1 - contrast) * grey.mean())
        mixed = image.mul_(brightness * contrast * saturation).add_(offset[..., None])
        return _with_image(sample, _to_uint8(mixed))


@dataclass(frozen=True)
class Invert:
    """Invert the image with ``probability``: 255 - image."""

    probability: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        return _with_image(sample, 255 - sample.image)


@dataclass(frozen=True)
class Gamma:
    """Random gamma: raise intensities in 0..1 to the power exp(u), u uniform in -``strength`` .. ``strength``."""

    strength: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        exponent = np.exp(rng.uniform(-self.strength, self.strength))
        table = np.round(255 * np.linspace(0, 1, 256) ** exponent).astype(np.uint8)
        return _with_image(sample, torch.from_numpy(table[sample.image.numpy()]))


@dataclass(frozen=True)
class StainJitter:
    """Scale and shift the amount of each H&E stain at random, as it varies between laboratories.

    The image is decomposed into haematoxylin, eosin and a residual (DAB) in optical density, -ln(intensity in 0..1)
    (Ruifrok & Johnston 2001), and each component is changed (Tellez et al. 2018, Whole-Slide Mitosis Detection in H&E
    Breast Histology Using PHH3 as a Reference to Train Distilled Stain-Invariant Convolutional Networks). Grey images
    have no stains and are unchanged. Black counts as an intensity of 1/255.

    Attributes:
        strength: stains are scaled by 1 - strength .. 1 + strength and shifted by up to strength / 10, in optical
            density.
    """

    strength: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        scale = rng.uniform(1 - self.strength, 1 + self.strength, 3)
        shift = rng.uniform(-self.strength / 10, self.strength / 10, 3)
        if _is_grey(sample.image):
            return sample
        # RGB -> stains -> change -> RGB is one affine map of the optical densities, which are the negative logarithms.
        mix = torch.from_numpy(np.linalg.inv(RGB_FROM_HED) @ np.diag(scale) @ RGB_FROM_HED).float()
        offset = torch.from_numpy(shift @ RGB_FROM_HED).float()
        logs = sample.image.float().clamp_(min=1).div_(255).log_()
        return _with_image(sample, _to_uint8((logs @ mix).sub_(offset).exp_().mul_(255)))


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with ``probability``, its standard deviation uniform in 0..``sigma`` pixels.

    The kernel is cut at three standard deviations; border pixels are replicated.
    """

    probability: float
    sigma: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        sigma = self.sigma * (1 - rng.random())  # random() can be 0 and is never 1
        radius = round(3 * sigma)
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        kernel /= kernel.sum()
        pixels = sample.image.permute(2, 0, 1)[:, None].float()  # channels as a batch, since all share the kernel
        pixels = F.pad(pixels, (radius, radius, radius, radius), mode="replicate")
        pixels = F.conv2d(F.conv2d(pixels, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
        return _with_image(sample, _to_uint8(pixels[:, 0].permute(1, 2, 0)).contiguous())


@dataclass(frozen=True)
class Noise:
    """Add Gaussian noise with ``probability``, its standard deviation uniform in 0..``strength`` * 255.

    The noise of the channels is independent; in grey images it is the same, so that they stay grey.
    """

    probability: float
    strength: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        deviation = 255 * rng.uniform(0, self.strength)
        channels = 1 if _is_grey(sample.image) else 3
        noise = rng.standard_normal((*sample.size, channels), dtype=np.float32)
        return _with_image(sample, _to_uint8(torch.from_numpy(noise).mul_(deviation) + sample.image))


@dataclass(frozen=True)
class ToGrey:
    """Convert to grey with ``probability``: the luminance (ITU-R BT.601) in all three channels."""

    probability: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.probability:
            return sample
        luminance = _to_uint8(sample.image.float() @ torch.tensor(LUMINANCE))
        return _with_image(sample, luminance[..., None].repeat(1, 1, 3))


def _is_grey(image: Tensor) -> bool:
    red, green, blue = image.unbind(2)
    return torch.equal(red, green) and torch.equal(green, blue)


def _to_uint8(image: Tensor) -> Tensor:
    return image.round_().clamp_(0, 255).to(torch.uint8)


def _with_image(sample: Sample, image: Tensor) -> Sample:
    return dataclasses.replace(sample, image=image)
