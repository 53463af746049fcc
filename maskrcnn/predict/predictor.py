"""From a checkpoint to cells: the three-line API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskrcnn.data.labels import InstanceLabels
from maskrcnn.data.sample import Sample, collate
from maskrcnn.data.tiff import read_image, to_rgb_uint8
from maskrcnn.engine.checkpoint import build_model, load_checkpoint
from maskrcnn.engine.device import autocast, choose_device
from maskrcnn.model import Detections, MaskRCNN


class Predictor:
    """A trained network with the intensity normalisation that it was trained with.

    >>> model = maskrcnn.load("runs/first/best.pt")  # doctest: +SKIP
    >>> cells = model("picture.tif")  # doctest: +SKIP
    >>> len(cells), cells.boxes, cells.to_labels()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: MaskRCNN,
        percentiles: tuple[float, float] | None,
        class_names: Sequence[str],
        device: torch.device,
        precision: str = "auto",
    ) -> None:
        self.model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.percentiles = percentiles
        self.class_names = tuple(class_names)
        self.device = device
        self.precision = precision

    def __call__(self, image: str | Path | np.ndarray | Tensor) -> Detections:
        """Cells in one picture.

        Args:
            image: a file (TIFF, PNG, JPEG), or an array [H, W], [H, W, 3] or [H, W, 4] of any integer or float type.

        Returns:
            Detections on the CPU, highest score first, in pixels of the picture.

        Raises:
            InputError: the file or array is no picture that can be used.
        """
        return self.predict_prepared(self.prepare(image))

    def prepare(self, image: str | Path | np.ndarray | Tensor) -> Tensor:
        """The picture as the network sees it: uint8 [H, W, 3] with its intensities stretched as in training."""
        if isinstance(image, str | Path):
            return read_image(Path(image), self.percentiles)
        array = image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
        return to_rgb_uint8(array, self.percentiles)

    @torch.inference_mode()
    def predict_prepared(self, image: Tensor) -> Detections:
        """Cells in a picture that :meth:`prepare` returned."""
        height, width = image.shape[:2]
        batch = collate([Sample(image, InstanceLabels.empty(height, width), "image", 0)]).to(self.device)
        with autocast(self.precision, self.device):
            (detections,) = self.model(batch.images.contiguous(memory_format=torch.channels_last), batch.sizes)
        return detections.to("cpu")


def load(checkpoint: str | Path, device: str = "auto", precision: str = "auto") -> Predictor:
    """The predictor of a checkpoint that ``train.py`` wrote.

    Args:
        checkpoint: ``best.pt`` or ``last.pt`` of a run folder; read with ``weights_only=True``.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto`` (bf16 autocast on GPUs and CPUs that compute in it, else fp32), ``fp32`` or ``bf16``.

    Raises:
        InputError: the file is missing, damaged, or no checkpoint of this project.
    """
    path = Path(checkpoint)
    contents = load_checkpoint(path)
    percentiles = contents["percentiles"]
    return Predictor(
        build_model(contents, path),
        None if percentiles is None else tuple(percentiles),
        contents["class_names"],
        choose_device(device),
        precision,
    )
