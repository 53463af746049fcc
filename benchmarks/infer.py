"""Time of inference from a picture to run lengths, part by part, compared to torchvision's Mask R-CNN.

    python -m benchmarks.infer [--device cuda] [--precisions fp32 bf16] [--pictures 512 200 1024 500]

Both start from a decoded picture, uint8 [H, W, 3], and end with COCO results: torchvision by its pasted masks > 0.5 and
pycocotools' encoder, as its users do; ours by :class:`Predictor` and ``Detections.to_coco``. Both have the same random
weights, anchors and thresholds and are limited to the same number of cells, and their boxes are compared in fp32 before
anything is timed. They run alternately in one process; ratios are medians over the rounds.

"As it comes" is torchvision in fp32 in its usual memory layout, "like for like" under the autocast and in the layout
(channels_last) of ours. The floor is the time for the network's arithmetic, by direct convolution, at the speed of
PyTorch's large convolutions on the machine; Winograd's algorithm needs less arithmetic and can be faster. The memory is
the peak of a picture in addition to the weights, torchvision's that of "like for like".
"""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torchvision
import tyro
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from benchmarks.measure import (
    Stopwatch,
    convolution_rate,
    in_turns,
    machine,
    operations,
    peak_extra_memory,
    row_of,
    table,
)
from benchmarks.train_step import ANCHORS, CLASSES, RATIOS
from maskrcnn.allocator import keep_freed_memory
from maskrcnn.data.synthetic import draw_picture
from maskrcnn.device import use_bfloat16
from maskrcnn.model import MaskRCNN, mask_rcnn_resnet50_fpn
from maskrcnn.model.weights import load_weights
from maskrcnn.predict.predictor import Predictor
from maskrcnn.structures import Detections

PARTS = ("backbone + FPN", "RPN", "box head", "mask head", "RLE", "other")
TOLERANCE = 0.05  # pixels, between the corners of a box that both find
LEAST_COMMON = 0.98  # of the boxes: where scores are cut off, rounding decides
Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """Time inference of ours and of torchvision's."""

    device: Literal["cpu", "cuda"] = "cpu"
    precisions: Annotated[tuple[Literal["fp32", "bf16"], ...], tyro.conf.arg(aliases=["--precision"])] = ("fp32",)
    """bf16 is skipped on processors without bfloat16 units."""
    pictures: tuple[tuple[int, int], ...] = ((512, 200), (1024, 500))
    """Side in pixels and number of detections of each picture."""
    keep_memory: bool = False
    """Make the process keep the memory that it frees, which makes both sides faster (CPU)."""
    budget: float = 60.0
    """Seconds to spend on the slowest side of each comparison, at least three rounds."""
    quick: bool = False
    """One small picture and three rounds, to see whether it runs."""


@dataclass(frozen=True)
class Contender:
    """One implementation, from a picture to COCO results, and its functions by part."""

    run: Callable[[], Results]
    parts: list[tuple[Any, str, str]]

    def breakdown(self, device: str) -> dict[str, float]:
        """Seconds of each part of one picture."""
        watch = Stopwatch(device)
        with watch.wrapped(self.parts), watch.part("other"):
            self.run()
        return watch.spent


def torchvision_model(size: int, cells: int) -> TorchvisionMaskRCNN:
    """``maskrcnn_resnet50_fpn`` with frozen norms, as with trained weights, with our anchors and random weights."""
    torch.manual_seed(0)
    norm = torchvision.ops.FrozenBatchNorm2d
    model = TorchvisionMaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=5),
        CLASSES + 1,
        min_size=size,
        max_size=size,
        rpn_anchor_generator=AnchorGenerator(ANCHORS, (RATIOS,) * len(ANCHORS)),
        box_detections_per_img=cells,
    )
    for name, module in model.named_modules():
        if isinstance(module, norm) and name.endswith("bn3"):
            module.weight.mul_(0.3)  # keeps 16 residual blocks from blowing the features up
        elif isinstance(module, nn.Conv2d | nn.Linear) and name.startswith(("rpn", "roi_heads")):
            # larger than at the start of training, so that scores, boxes and masks differ from place to place
            gain = {"cls_score": 5.0, "bbox_pred": 0.5}.get(name.rsplit(".", 1)[-1], 1.4)
            nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
            if name.endswith("cls_score"):  # features are positive: their mean would make one class win everywhere
                module.weight.data -= module.weight.data.mean(dim=1, keepdim=True)
    return model.eval()


def our_model(theirs: TorchvisionMaskRCNN, cells: int) -> MaskRCNN:
    """Ours with the same weights, anchors and limit."""
    model = mask_rcnn_resnet50_fpn(
        CLASSES,
        norm="frozen_batch",
        anchor_sizes=ANCHORS,
        anchor_ratios=RATIOS,
        anchors_rounded=True,
        aligned=False,
        detections_per_image=cells,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(theirs.state_dict(), path)
        load_weights(model, path)
    return model.eval()


class Torchvision:
    """The code that a user of torchvision writes around the model."""

    def __init__(self, model: TorchvisionMaskRCNN, precision: str, device: str) -> None:
        self.model, self.precision, self.device = model, precision, device

    @torch.inference_mode()
    def results(self, image: np.ndarray) -> Results:
        """uint8 [H, W, 3] -> COCO results."""
        picture = torch.from_numpy(image).to(self.device).permute(2, 0, 1).float() / 255
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
            (found,) = self.model([picture])
        return self.encode(found)

    def encode(self, found: dict[str, Tensor]) -> Results:
        boxes = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], dim=1)
        masks = (found["masks"][:, 0] > 0.5).cpu().numpy()
        results = []
        for box, score, label, mask in zip(
            boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), masks, strict=True
        ):
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            rle["counts"] = rle["counts"].decode()
            results.append({"image_id": 0, "category_id": label, "bbox": box, "score": score, "segmentation": rle})
        return results


def theirs(model: TorchvisionMaskRCNN, image: np.ndarray, precision: str, device: str) -> Contender:
    user, heads = Torchvision(model, precision, device), model.roi_heads
    parts = [
        (model.backbone, "forward", "backbone + FPN"),
        (model.rpn, "forward", "RPN"),
        *((getattr(heads, name), "forward", "box head") for name in ("box_roi_pool", "box_head", "box_predictor")),
        (heads, "postprocess_detections", "box head"),
        *((getattr(heads, name), "forward", "mask head") for name in ("mask_roi_pool", "mask_head", "mask_predictor")),
        (model.transform, "postprocess", "RLE"),
        (user, "encode", "RLE"),
    ]
    return Contender(lambda: user.results(image), parts)


def ours(model: MaskRCNN, image: np.ndarray, precision: str, device: str) -> Contender:
    names = [f"class{number}" for number in range(1, CLASSES + 1)]
    predictor = Predictor(model, None, names, torch.device(device), precision, overlap_factor=1.0)
    # torchvision's limits do not grow with the picture
    predictor.detector = replace(predictor.detector, pixels_per_detection=image.size)
    parts = [
        (model, "features", "backbone + FPN"),
        (model.rpn, "forward", "RPN"),
        (model.box_head, "forward", "box head"),
        (model.box_head, "detect", "box head"),
        (model.mask_head, "forward", "mask head"),
        (Detections, "to_coco", "RLE"),
    ]
    return Contender(lambda: predictor(image).to_coco(0), parts)


def common_boxes(one: Results, other: Results) -> int:
    """Number of boxes that both found, of the same class, one to one, within :data:`TOLERANCE`."""
    boxes, other_boxes = (torch.tensor([r["bbox"] for r in results], dtype=torch.float64) for results in (one, other))
    classes, other_classes = (torch.tensor([r["category_id"] for r in results]) for results in (one, other))
    for xywh in (boxes, other_boxes):
        xywh[:, 2:] += xywh[:, :2]
    same = torch.cdist(boxes, other_boxes, p=torch.inf) <= TOLERANCE
    same &= classes[:, None] == other_classes
    return int(same[linear_sum_assignment(same.numpy(), maximize=True)].sum())


def check(contenders: dict[str, Contender], cells: int, compare: bool) -> str:
    """Check that all have ``cells`` results and, with ``compare``, the same boxes; returns the number of equal boxes.

    Raises:
        RuntimeError: the work of the contenders is not the same.
    """
    results = {name: contender.run() for name, contender in contenders.items()}
    for name, found in results.items():
        if len(found) != cells:
            raise RuntimeError(f"{name} found {len(found)} cells, expected {cells}")
    if not compare:
        return "not compared"
    reference, *others = results.values()
    common = min(common_boxes(reference, other) for other in others)
    if common < LEAST_COMMON * cells:
        raise RuntimeError(f"only {common} of {cells} boxes are the same")
    return f"{common} of {cells}"


def main(options: Options) -> None:
    device = options.device
    if options.keep_memory:
        keep_freed_memory()
    pictures, budget = (((128, 20),), 0.0) if options.quick else (options.pictures, options.budget)
    computes = {"fp32": True, "bf16": use_bfloat16("auto", torch.device(device))}
    print(f"    {' '.join(['python -m benchmarks.infer', *sys.argv[1:]])}\n")
    print(f"{machine(device)}, torchvision {torchvision.__version__}\n")
    header = ["picture", "precision", "torchvision as it comes", "torchvision like for like", "ours"]
    header += ["ratio as it comes", "ratio like for like", "floor"]
    header += ["memory torchvision", "memory ours", "same boxes"]
    print(table(header, []), flush=True)
    details = []
    for size, cells in pictures:
        image, _ = draw_picture(size, np.random.default_rng(0))
        usual = torchvision_model(size, cells)
        own = our_model(usual, cells)
        last = copy.deepcopy(usual).to(device, memory_format=torch.channels_last)
        usual.to(device)
        for precision in options.precisions:
            start = [f"{size}x{size}, {cells} cells", precision]
            if not computes[precision]:
                print(row_of([*start, "not timed: the processor does not compute in it", *["-"] * 8]), flush=True)
                continue
            contenders = {
                "torchvision as it comes": theirs(usual, image, "fp32", device),
                "torchvision like for like": theirs(last, image, precision, device),
                "ours": ours(own, image, precision, device),
            }
            same = check(contenders, cells, precision == "fp32")
            rounds = in_turns([contender.run for contender in contenders.values()], device, budget)
            times = [statistics.median(column) for column in zip(*rounds, strict=True)]
            ratios = [statistics.median(row[side] / row[2] for row in rounds) for side in (0, 1)]
            work = operations(contenders["torchvision as it comes"].run)
            floor = work / convolution_rate(precision, device)
            memory = [peak_extra_memory(contender.run, device) / 1e9 for contender in contenders.values()]
            row = [
                *start,
                *(f"{time:.3f} s" for time in times),
                *(f"{ratio:.2f}x" for ratio in ratios),
                f"{floor:.3f} s ({floor / times[2]:.0%}), {work / 1e12:.2f} TFLOP",
                f"{memory[1]:.2f} GB",
                f"{memory[2]:.2f} GB",
                same,
            ]
            print(row_of(row), flush=True)  # each at once: what was measured is kept if time runs out
            for name, contender in contenders.items():
                spent = contender.breakdown(device)
                details.append([*start, name, *(f"{spent.get(part, 0):.3f}" for part in PARTS)])
    print("\nSeconds by part, from one more run of each:\n")
    print(table(["picture", "precision", "", *PARTS], details))


if __name__ == "__main__":
    main(tyro.cli(Options))
