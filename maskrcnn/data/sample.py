"""One image with its ground truth, and a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn.structures import InstanceLabels

PAD_MULTIPLE = 32  # the largest stride of the backbone, so that every level halves without a remainder


@dataclass(frozen=True)
class Sample:
    """One image with its ground-truth instances.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        labels: the instances, with planes of the same H, W; may have none.
        name: name of the picture's folder or file, for messages and exports.
        image_id: id in COCO results, from 1.
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
    """A batch of padded images with their ground-truth instances.

    Attributes:
        images: uint8 [B, 3, H, W], zero padded at the right and the bottom.
        sizes: (h, w) of each image before padding.
        labels: one per image; planes padded to the batch's H, W, boxes unchanged.
        names: one per image.
        image_ids: one per image.
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
        labels = [instances.to(device, non_blocking=non_blocking) for instances in self.labels]
        return Batch(images, self.sizes, labels, self.names, self.image_ids)

    def pin_memory(self) -> Batch:
        """Images and labels in page-locked memory (``DataLoader(pin_memory=True)`` calls this)."""
        labels = [instances.pin_memory() for instances in self.labels]
        return Batch(self.images.pin_memory(), self.sizes, labels, self.names, self.image_ids)


def pad_images(images: Sequence[Tensor]) -> Tensor:
    """Zero-pad images of different sizes to one tensor for the network.

    Args:
        images: at least one, uint8 [H, W, 3].

    Returns:
        uint8 [B, 3, H, W], zero padded at the right and the bottom to the largest height and width, rounded up to
        multiples of 32.
    """
    height, width = (-(-max(image.shape[axis] for image in images) // PAD_MULTIPLE) * PAD_MULTIPLE for axis in (0, 1))
    padded = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
    for target, image in zip(padded, images, strict=True):
        target[:, : image.shape[0], : image.shape[1]] = image.permute(2, 0, 1)
    return padded


def collate(samples: Sequence[Sample]) -> Batch:
    """Make a batch of samples, padded to the largest height and width, rounded up to multiples of 32."""
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
