"""How often prediction waits for a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskrcnn.model import MaskRCNN, mask_rcnn_resnet_fpn
from maskrcnn.predict.capacity import Capacity
from maskrcnn.predict.detector import Detector
from tests.gpu_waits import waits_for


def _network(**options: object) -> MaskRCNN:
    levels = ((8, 4), (16,), (32,))
    return mask_rcnn_resnet_fpn(
        18, 2, stages=2, width=32, channels=32, box_hidden=16, anchor_sizes=levels, **options
    ).eval()


def _detector(model: MaskRCNN, device: str) -> Detector:
    return Detector(model, torch.device(device), "bf16", model.limits, Capacity(512, 32, batch_size=2))


def _images(count: int) -> list[Tensor]:
    return list(torch.randint(0, 256, (count, 50, 64, 3), dtype=torch.uint8))


@pytest.mark.parametrize(("threshold", "masks"), [(0.05, True), (0.05, False), (0.99, True)])
def test_once_per_batch_for_the_number_of_detections(threshold: float, masks: bool) -> None:
    torch.manual_seed(0)
    detector = _detector(_network(box_score_threshold=threshold), "cpu")
    with waits_for("cpu") as waits:
        found = detector.detect(_images(5), masks=masks)
    assert all(len(cells) > 0 for cells in found) == (threshold < 0.5)
    assert [wait.split(":")[0] for wait in waits] == ["model/rois.py"] * 3, "\n".join(waits)


@pytest.mark.parametrize(
    ("aligned", "masks", "tiles"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_and_once_for_their_copy_from_a_gpu(aligned: bool, masks: bool, tiles: bool) -> None:
    with waits_for("cuda") as waits:
        with torch.device("cuda"):
            model = _network(aligned=aligned, norm="group" if tiles else "frozen_batch")
        detector = _detector(model, "cuda")
        images = _images(4)
        waits.clear()
        if tiles:
            detector = detector.with_statistics(detector.statistics_of(images[:2]))
            assert not waits
        found = detector.detect(images, masks=masks)
    assert all(value.device.type == "cpu" for cells in found for value in (cells.boxes, cells.masks))
    places = [f"{wait.split(':')[0]} {wait.split()[1]}" for wait in waits]
    assert places == ["model/rois.py tolist", "predict/detector.py synchronize"] * 2, "\n".join(waits)
