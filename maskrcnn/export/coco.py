"""Writes COCO results: ``test-results.json``, and ``submission.zip`` that contains it."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn.data.id_mapping import TestImage
from maskrcnn.files import atomic_write

RESULTS = "test-results.json"
SUBMISSION = "submission.zip"


def write_results(
    folder: Path, results: Sequence[dict[str, Any]], images: Sequence[TestImage], category_ids: Sequence[int]
) -> tuple[Path, Path]:
    """Write ``test-results.json`` and ``submission.zip`` into ``folder``, after loading them with pycocotools.

    If writing fails, earlier files are unchanged.

    Args:
        folder: where the files are written.
        results: COCO results: ``image_id``, ``category_id`` (class 1..K), ``bbox`` [x, y, w, h], ``score`` and
            ``segmentation`` (RLE with text counts, in the picture's size).
        images: the pictures that were predicted, with their ids.
        category_ids: ids of classes 1..K in the files: those of the data that the network was trained on.

    Raises:
        InputError: the folder cannot be written.
        RuntimeError: pycocotools cannot read the results: a bug of this program.
    """
    converted = [{**result, "category_id": category_ids[result["category_id"] - 1]} for result in results]
    check_results(converted, images, category_ids)
    text = json.dumps(converted)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(RESULTS), text, zipfile.ZIP_DEFLATED)  # without a time: the same bytes always
    for name, contents in ((RESULTS, text.encode()), (SUBMISSION, packed.getvalue())):
        with atomic_write(folder / name) as beside:
            beside.write_bytes(contents)
    return folder / RESULTS, folder / SUBMISSION


def check_results(results: Sequence[dict[str, Any]], images: Sequence[TestImage], category_ids: Sequence[int]) -> None:
    """Load the results with pycocotools, and check that image ids, categories and mask sizes are those of the pictures;
    raises RuntimeError."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i.image_id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images],
        "categories": [{"id": number, "name": str(number)} for number in category_ids],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if not results:  # pycocotools does not accept an empty list
            return
        loaded = truth.loadRes(json.loads(json.dumps(list(results))))
    sizes = {image.image_id: [image.height, image.width] for image in images}
    categories = set(truth.getCatIds())
    for annotation in loaded.dataset["annotations"]:
        rle = annotation["segmentation"]
        if rle["size"] != sizes[annotation["image_id"]] or annotation["category_id"] not in categories:
            raise RuntimeError(f"result {annotation['id']} does not fit picture {annotation['image_id']}")
        coco_mask.area(rle)
