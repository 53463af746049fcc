"""From pixels to cells: the network on images of one size, in batches that the device's memory has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from maskrcnn.data.sample import pad_images
from maskrcnn.device import autocast
from maskrcnn.model import MaskRCNN
from maskrcnn.model.limits import Limits
from maskrcnn.predict.augment import Augment, detect_in_views
from maskrcnn.predict.capacity import Capacity
from maskrcnn.predict.masks import into_their_boxes
from maskrcnn.structures import Detections

PIXELS_PER_DETECTION = 1024
"""The checkpoint's limit of cells was meant for small pictures: in larger ones there may be one in each 32x32."""


@dataclass(frozen=True)
class Detector:
    """A network that is asked for the cells of images.

    Attributes:
        model: in evaluation mode, on ``device``.
        device: where it computes.
        precision: ``auto``, ``fp32`` or ``bf16``.
        limits: of a small image; a larger one may have one cell for each ``pixels_per_detection``.
        capacity: how many images go through the network together.
        pixels_per_detection: see :data:`PIXELS_PER_DETECTION`.
        mask_threshold: probability above which a point belongs to a cell.
    """

    model: MaskRCNN
    device: torch.device
    precision: str
    limits: Limits
    capacity: Capacity
    pixels_per_detection: int = PIXELS_PER_DETECTION
    mask_threshold: float = 0.5

    def detect(self, images: Sequence[Tensor], augment: Augment = "none", masks: bool = True) -> list[Detections]:
        """The cells of images.

        Args:
            images: uint8 [H, W, 3], all of one size.
            augment: views of each image that are averaged (:mod:`maskrcnn.predict.augment`).
            masks: False spares the mask head, for boxes alone.

        Returns:
            Detections of each image on the CPU.

        Raises:
            torch.cuda.OutOfMemoryError: one image alone is too large.
        """
        found: list[Detections] = []
        forward = partial(self._forward, masks=masks)
        while len(found) < len(images):
            part = images[len(found) : len(found) + self.capacity.batch_size]
            try:
                found += detect_in_views(forward, part, augment)
                continue
            except torch.cuda.OutOfMemoryError:
                if len(part) == 1:
                    raise
            self.capacity.use_smaller_batches(len(part))  # once the exception, which holds tensors, is gone
        return found

    def normalised_by(self, images: Sequence[Tensor]) -> Detector:
        """The same for parts of the picture that ``images`` (uint8 [H, W, 3]) represent: GroupNorm takes its means and
        variances from them. Else the noise of an empty part would be stretched until it looks like cells."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return replace(self, model=self.model.with_statistics_of(*self._batch(images)))

    @torch.inference_mode()
    def _forward(self, images: Sequence[Tensor], masks: bool) -> list[Detections]:
        limits = self.limits.at_least(images[0].shape[0] * images[0].shape[1] // self.pixels_per_detection)
        with autocast(self.precision, self.device):
            detections = self.model(*self._batch(images), masks=masks, limits=limits)
        if masks and not self.model.aligned:
            detections = [replace(one, masks=into_their_boxes(one.masks, one.boxes)) for one in detections]
        return [replace(one, mask_threshold=self.mask_threshold).to("cpu") for one in detections]

    def _batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """What the network takes: the images in one tensor on the device, and their sizes."""
        batch = pad_images(images).to(self.device).contiguous(memory_format=torch.channels_last)
        return batch, [(image.shape[0], image.shape[1]) for image in images]
