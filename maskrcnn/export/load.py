"""The predictor of an inference run."""

from __future__ import annotations

from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.predict.load import load
from maskrcnn.predict.predictor import Predictor


def load_predictor(config: InferConfig) -> Predictor:
    """The predictor with the run's options; raises InputError if they do not suit the checkpoint."""
    predictor = load(
        config.checkpoint,
        config.device,
        config.precision,
        config.tile,
        config.overlap,
        config.batch_size,
        config.augment,
        config.box_score_threshold,
    )
    if config.diameter not in (None, "none") and predictor.diameter is None:
        raise InputError(
            f"--diameter is {config.diameter}, but {config.checkpoint} was not trained for cells of one size; "
            "expected none"
        )
    return predictor


def minimum_scores(config: InferConfig, predictor: Predictor) -> tuple[float, ...]:
    """The minimum score of a cell in results, for each class."""
    if config.score_threshold is None:
        return predictor.score_threshold
    return (config.score_threshold,) * len(predictor.class_names)
