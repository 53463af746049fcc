"""A training process for the tests to start: python -m tests.engine.worker CONFIG.json ACCIDENT THREADS

Its network takes few proposals, so that a step that samples all of them is short.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from maskrcnn import checkpoint, distributed
from maskrcnn.data.dataset import CellDataset
from maskrcnn.engine import train as trainer
from maskrcnn.engine.config import TrainConfig
from maskrcnn.engine.log import TOTAL, MetricsLog
from maskrcnn.engine.steps import NonFiniteLossError
from maskrcnn.evaluation import evaluate as evaluation
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections

FEW_PROPOSALS = {"rpn_pre_nms": (32, 16), "rpn_post_nms": (32, 16)}


def small_network(**options: Any) -> MaskRCNN:
    """A :func:`mask_rcnn_resnet_fpn` of these options that is quick to train."""
    return mask_rcnn_resnet_fpn(**options, **FEW_PROPOSALS)


def no_sync(descriptor: int) -> None:
    """In place of os.fsync, which guards against power cuts and not against SIGKILL: the tests need not wait for it."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_step(number: int) -> None:
    """SIGKILL once the row of this step is written: before last.pt is."""
    write = MetricsLog.write

    def dying(self: MetricsLog, row: dict[str, Any]) -> None:
        write(self, row)
        if TOTAL in row and row["step"] == number:
            kill()

    MetricsLog.write = dying  # type: ignore[method-assign]


def die_half_way_through_save(number: int) -> None:
    """SIGKILL in the ``number``-th save, with half of the file written."""
    save = torch.save
    calls = 0

    def dying(contents: object, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            whole = io.BytesIO()
            save(contents, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            kill()
        save(contents, file)

    checkpoint.torch.save = dying  # type: ignore[attr-defined]


def die_before_rename(number: int) -> None:
    """SIGKILL in the ``number``-th save, with the file written and not yet renamed."""
    calls = 0

    def dying(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            kill()

    os.fsync = dying


def not_finite_in_process_1() -> None:
    forward = MaskRCNN.forward
    calls = 0

    def broken(self: MaskRCNN, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        losses = forward(self, *args)
        if distributed.rank() == 1 and calls == 2:
            assert isinstance(losses, dict)
            losses["loss_mask"] = losses["loss_mask"] * math.nan
        return losses

    MaskRCNN.forward = broken  # type: ignore[method-assign]


def process_0_alone_writes(folder: Path) -> None:
    """Any other that opens a file in ``folder`` for writing, renames, makes or deletes there, fails."""
    if distributed.launched_rank() == 0:
        return

    def hook(event: str, args: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.mkdir", "shutil.rmtree")
        if event == "open" and isinstance(args[2], int):
            changes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and str(args[0]).startswith(f"{folder}/"):
            raise AssertionError(f"process {distributed.launched_rank()}: {event} {args}")

    sys.addaudithook(hook)


def predict_after_epoch(folder: Path) -> None:
    """Each process leaves what ``predict_dataset`` returned to it beside the run folder."""

    predict = evaluation.predict_dataset

    def recorded(predictor: Predictor, dataset: CellDataset, *args: Any) -> list[Detections]:
        found = predict(predictor, dataset, *args)
        path = folder.with_name(f"{folder.name}-results-{distributed.rank()}.json")
        path.write_text(json.dumps(evaluation.to_results(dataset, found) if found else []))
        return found

    evaluation.predict_dataset = recorded


if __name__ == "__main__":
    config = TrainConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    assert config.out is not None
    accident, _, argument = sys.argv[2].partition(":")
    torch.set_num_threads(int(sys.argv[3]))
    trainer.mask_rcnn_resnet_fpn, os.fsync = small_network, no_sync  # type: ignore[assignment]
    if accident == "after-step":
        die_after_step(int(argument))
    elif accident == "half-way-through-save":
        die_half_way_through_save(int(argument))
    elif accident == "before-rename":
        die_before_rename(int(argument))
    elif accident == "not-finite":
        not_finite_in_process_1()
    elif accident == "none":
        process_0_alone_writes(config.out)
        predict_after_epoch(config.out)
    try:
        trainer.train(config)
    except NonFiniteLossError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
