"""A substitute for the network in tests of prediction, whose detections are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskrcnn.model.limits import Limits
from maskrcnn.structures import Detections


class StandIn(nn.Module):
    """What :class:`maskrcnn.predict.predictor.Predictor` asks of a network; subclasses say what they detect."""

    aligned = True
    limits = Limits()

    def statistics_of(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        return torch.zeros(0, 2, 1, 1)

    def with_statistics(self, statistics: Tensor) -> StandIn:
        return self

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], masks: bool = True, limits: Limits | None = None
    ) -> list[Detections]:
        found = [self.detect(image[:, :height, :width]) for image, (height, width) in zip(images, sizes, strict=True)]
        return [cells.filter((limits or self.limits).score_threshold) for cells in found]

    def detect(self, image: Tensor) -> Detections:
        """The cells of an image uint8 [3, H, W]."""
        raise NotImplementedError
