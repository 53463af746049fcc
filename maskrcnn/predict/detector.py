"""Runs the network on images of one size, in batches that fit in the device's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from maskrcnn.data.sample import pad_images
from maskrcnn.device import Precision, autocast
from maskrcnn.model import MaskRCNN
from maskrcnn.model.limits import Limits
from maskrcnn.predict.augment import Augment, detect_in_views
from maskrcnn.predict.capacity import Capacity
from maskrcnn.predict.masks import align_masks
from maskrcnn.structures import Detections

PIXELS_PER_DETECTION = 400
"""Larger images may have one detection per 20x20 pixels: the checkpoint's limit is for small images. Where cells of 30
pixels touch, there is one per 27x27, and the limit must leave room for the doubtful ones."""


@dataclass(frozen=True)
class Detector:
    """Detects the cells in images: a network with its device, precision and limits.

    Attributes:
        model: the network in evaluation mode, on ``device``.
        device: device of the network.
        precision: ``auto``, ``fp32`` or ``bf16``.
        limits: limits for a small image; a larger one may have one detection per ``pixels_per_detection``.
        capacity: how many images go through the network together.
        pixels_per_detection: see :data:`PIXELS_PER_DETECTION`.
        mask_threshold: probability above which a pixel belongs to a cell.
    """

    model: MaskRCNN
    device: torch.device
    precision: Precision
    limits: Limits
    capacity: Capacity
    pixels_per_detection: int = PIXELS_PER_DETECTION
    mask_threshold: float = 0.5

    def detect(self, images: Sequence[Tensor], augment: Augment = "none", masks: bool = True) -> list[Detections]:
        """Detect the cells in images.

        Args:
            images: uint8 [H, W, 3], all of one size.
            augment: test-time augmentation (:mod:`maskrcnn.predict.augment`).
            masks: False skips the mask head; the detections have boxes only.

        Returns:
            Detections of each image on the CPU.

        Raises:
            torch.cuda.OutOfMemoryError: a single image is too large.
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
            self.capacity.use_smaller_batches(len(part))  # outside of except: the exception keeps tensors alive
        return found

    def statistics_of(self, images: Sequence[Tensor]) -> Tensor:
        """GroupNorm's means and variances over ``images``, uint8 [H, W, 3] of one size, which represent a picture:
        float [L, 2, 1, groups] for L layers."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            return self.model.statistics_of(*self._batch(images))

    def with_statistics(self, statistics: Tensor) -> Detector:
        """A detector for tiles of the picture whose :meth:`statistics_of` are given. By its own, the noise of an empty
        tile would be amplified until it looks like cells."""
        return replace(self, model=self.model.with_statistics(statistics))

    def limits_for(self, height: int, width: int) -> Limits:
        """The limits for an image of this size."""
        return self.limits.at_least(height * width // self.pixels_per_detection)

    @torch.inference_mode()
    def _forward(self, images: Sequence[Tensor], masks: bool) -> list[Detections]:
        limits = self.limits_for(images[0].shape[0], images[0].shape[1])
        with autocast(self.precision, self.device):
            detections = self.model(*self._batch(images), masks=masks, limits=limits)
        if masks and not self.model.aligned:
            detections = [replace(cells, masks=align_masks(cells.masks, cells.boxes)) for cells in detections]
        return _on_host([replace(cells, mask_threshold=self.mask_threshold) for cells in detections])

    def _batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """The network's input: the images in one tensor on the device, and their sizes."""
        batch = pad_images(images)
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # from there, copies do not wait for the GPU
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        return batch, [(image.shape[0], image.shape[1]) for image in images]


def _on_host(detections: Sequence[Detections]) -> list[Detections]:
    """The detections of a batch on the CPU; waits for a GPU once, not for every tensor."""
    device = detections[0].boxes.device
    if device.type == "cpu":
        return list(detections)
    names = ("boxes", "scores", "labels", "masks")
    copies = [{name: getattr(cells, name).to("cpu", non_blocking=True) for name in names} for cells in detections]
    torch.cuda.current_stream(device).synchronize()
    # these copies are in page-locked memory, which is scarce: results may be kept for long
    return [
        replace(cells, **{name: values.clone() for name, values in copied.items()})
        for cells, copied in zip(detections, copies, strict=True)
    ]
