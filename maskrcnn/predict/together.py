"""Prediction of one large picture by all processes that torchrun started."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from maskrcnn import distributed
from maskrcnn.data.picture import Picture
from maskrcnn.predict.plan import Plan
from maskrcnn.predict.predictor import Diameter, Predictor
from maskrcnn.structures import Detections

TILES = 8
"""Number of tiles per process from which a picture is divided: with fewer, processes take whole pictures."""


def is_large(predictor: Predictor, picture: Picture) -> bool:
    """Whether all processes should predict the picture together."""
    tile = predictor.capacity.tile
    count = (picture.size[0] // tile) * (picture.size[1] // tile)  # at its own scale, the only one that is known yet
    return distributed.world_size() > 1 and count >= TILES * distributed.world_size()


def predict_together(
    predictor: Predictor,
    picture: Picture,
    progress: Callable[[int, int], object] | None = None,
    diameter: Diameter | None = None,
) -> Detections | None:
    """:meth:`Predictor.predict` with the tiles shared by all processes, which must all call it.

    Process 0 plans, each process detects the cells in every N-th batch of tiles, and process 0 merges them.

    Returns:
        The detections in process 0, those that it would find alone; None in the others.

    Raises:
        InputError: in all processes, what failed in one of them.
    """
    plan = _from_main(lambda: predictor.plan(picture, diameter))
    rank, count = distributed.rank(), distributed.world_size()
    while True:
        own = plan.batches[rank::count]
        found = distributed.in_all(lambda: _detect(predictor, picture, plan, own, progress))  # noqa: B023
        if not distributed.any_process(found is None):
            break
        plan = _from_main(lambda: predictor.with_smaller_tiles(picture, plan))  # noqa: B023
    parts = distributed.gather(found)
    if not distributed.is_main():
        return None
    tiles: list[Detections | None] = [None] * len(plan.tiles)
    for first, part in enumerate(parts):
        numbers = [number for batch in plan.batches[first::count] for number in batch]
        for number, detections in zip(numbers, part or [], strict=True):
            tiles[number] = detections
    return predictor.merge(picture, plan, [detections for detections in tiles if detections is not None])


def _from_main(make: Callable[[], Plan]) -> Plan:
    """The plan that process 0 makes, in all processes; what fails there raises InputError in all."""
    made = distributed.in_all(lambda: make() if distributed.is_main() else None)
    return distributed.from_main(lambda: made)  # type: ignore[return-value]


def _detect(
    predictor: Predictor,
    picture: Picture,
    plan: Plan,
    batches: Sequence[Sequence[int]],
    progress: Callable[[int, int], object] | None,
) -> list[Detections] | None:
    """The detections of some batches; None if they do not fit in the GPU's memory."""
    try:
        return predictor.detect(picture, plan, batches, progress) if batches else []
    except torch.cuda.OutOfMemoryError:
        return None
