"""Checks that the run lengths of a trained network's masks, pasted as in torchvision, are byte for byte those of
torchvision and pycocotools.

python -m benchmarks.rle_equality --checkpoint runs/demo/best.pt --images runs/demo/data/test_release/*.tif
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image
from tqdm import tqdm

import maskrcnn
from maskrcnn import ops
from maskrcnn.structures import Detections


@dataclass(frozen=True)
class Options:
    """Count equal run lengths, and the pixels in which the others differ."""

    checkpoint: Path
    """A trained network."""
    images: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILES")]
    """Pictures to find cells in."""


def pasted_and_encoded(cells: Detections) -> list[dict]:
    """The masks as torchvision's post-processing and pycocotools give them, one after another to bound the memory."""
    results = []
    for mask, box in zip(cells.masks, cells.boxes, strict=True):
        pasted = paste_masks_in_image(mask[None, None].float(), box[None], cells.size)[0, 0] > 0.5
        results.append(coco_mask.encode(np.asfortranarray(pasted.numpy(), dtype=np.uint8)))
    return results


def main(options: Options) -> None:
    predictor = maskrcnn.load(options.checkpoint)
    masks = equal = pixels = 0
    for path in tqdm(options.images):
        cells = predictor(path).to("cpu")
        pasted = ops.masks_to_rle(cells.masks, cells.boxes, cells.size, aligned=False)
        for ours, theirs in zip(pasted, pasted_and_encoded(cells), strict=True):
            masks += 1
            equal += ours == theirs
            pixels += int((coco_mask.decode(ours) != coco_mask.decode(theirs)).sum())
    print(f"{equal} of {masks} masks of {len(options.images)} pictures equal; the others differ in {pixels} pixels")


if __name__ == "__main__":
    main(tyro.cli(Options))
