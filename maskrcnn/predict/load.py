"""From a checkpoint to a predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskrcnn import pretrained
from maskrcnn.checkpoint import build_model, load_checkpoint, locate
from maskrcnn.device import Precision, choose_device
from maskrcnn.options import Fraction, checked
from maskrcnn.predict.augment import Augment
from maskrcnn.predict.predictor import BatchSize, Overlap, Predictor, TileSide


@checked
def load(
    checkpoint: str | Path = pretrained.DEFAULT,
    device: str = "auto",
    precision: Precision = "auto",
    tile: TileSide | None = None,
    overlap: Overlap | None = None,
    batch_size: BatchSize | None = None,
    augment: Augment = "none",
    box_score_threshold: Fraction | None = None,
) -> Predictor:
    """Load a trained network for prediction: a model that comes with the package, or a checkpoint of ``train.py``.

    Args:
        checkpoint: the name of a model in :mod:`maskrcnn.pretrained`, or ``best.pt`` or ``last.pt`` of a run folder;
            read without running code from the file.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``auto`` (bf16 autocast on devices with bfloat16 units, else fp32), ``fp32`` or ``bf16``.
        tile, overlap, batch_size, augment: see :class:`maskrcnn.predict.predictor.Predictor`; None: chosen for the
            device.
        box_score_threshold: detections with a lower score are dropped before their masks are predicted; None: 0.05.

    Raises:
        InputError: the file is missing, damaged, or not a checkpoint of this package; or an argument is out of range.
    """
    path = locate(checkpoint)
    contents = load_checkpoint(path)
    percentiles = contents["percentiles"]
    return Predictor(
        build_model(contents, path),
        None if percentiles is None else tuple(percentiles),
        contents["class_names"],
        choose_device(device),
        precision,
        tile,
        overlap,
        batch_size,
        augment,
        box_score_threshold,
        contents.get("diameter"),
        channels=contents.get("channels"),
        category_ids=contents.get("category_ids"),
        resize=contents.get("resize"),
        **_thresholds(contents),
    )


def _thresholds(contents: dict[str, Any]) -> dict[str, Any]:
    """The fitted thresholds of a checkpoint as arguments of :class:`Predictor`; ``min_score`` is the earlier name of
    ``score_threshold``, which was fitted to scores that were not lowered."""
    fitted = contents.get("thresholds", {})
    if fitted:
        fitted = {"overlap_factor": 1.0, **fitted}
    return {"score_threshold" if name == "min_score" else name: value for name, value in fitted.items()}
