"""One picture with its labels, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.structures import InstanceLabels

PAD_MULTIPLE = 32  # the coarsest stride of the FPN's input, so that every level halves without a remainder


@dataclass(frozen=True)
class Sample:
    """One picture.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        labels: its instances, planes of the same H, W; without instances for a picture that has none.
        name: the name of its folder or file, for messages and exports.
        image_id: its id in COCO results, from 1.
    """

    image: Tensor
    labels: InstanceLabels
    name: str
    image_id: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Batch:
    """Pictures of one training step.

    Attributes:
        images: uint8 [B, 3, H, W], zero padded at the right and the bottom.
        sizes: the true (h, w) of each picture.
        labels: one per picture; planes padded to the batch's H, W, boxes unchanged.
        names: one per picture.
        image_ids: one per picture.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    labels: list[InstanceLabels]
    names: list[str]
    image_ids: list[int]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Images and labels on ``device``."""
        images = self.images.to(device, non_blocking=non_blocking)
        labels = [one.to(device, non_blocking=non_blocking) for one in self.labels]
        return Batch(images, self.sizes, labels, self.names, self.image_ids)

    def pin_memory(self) -> Batch:
        """Images and labels in page-locked memory (``DataLoader(pin_memory=True)`` calls this)."""
        labels = [one.pin_memory() for one in self.labels]
        return Batch(self.images.pin_memory(), self.sizes, labels, self.names, self.image_ids)


def pad_images(images: Sequence[Tensor]) -> Tensor:
    """Images of several sizes as one tensor that the network takes.

    Args:
        images: at least one, uint8 [H, W, 3].

    Returns:
        uint8 [B, 3, H, W], zero padded at the right and the bottom to the largest height and width, rounded up to
        multiples of 32.
    """
    height, width = (-(-max(image.shape[axis] for image in images) // PAD_MULTIPLE) * PAD_MULTIPLE for axis in (0, 1))
    padded = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[0], : image.shape[1]] = image.permute(2, 0, 1)
    return padded


def collate(samples: Sequence[Sample]) -> Batch:
    """Pad samples to the largest height and width among them, rounded up to a multiple of 32."""
    if not samples:
        raise ValueError("samples: none, expected at least one")
    for sample in samples:
        if sample.labels.size != sample.size:
            raise ValueError(f"{sample.name}: labels of {sample.labels.size}, image of {sample.size}")
    images = pad_images([sample.image for sample in samples])
    height, width = images.shape[-2:]
    return Batch(
        images,
        [sample.size for sample in samples],
        [sample.labels.padded(height, width) for sample in samples],
        [sample.name for sample in samples],
        [sample.image_id for sample in samples],
    )
