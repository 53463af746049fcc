"""An inference run from options to a submission and pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from maskrcnn.data.hw3 import TestImage, read_test_release
from maskrcnn.data.tiff import image_size
from maskrcnn.errors import InputError, writing
from maskrcnn.predict.export import write_results
from maskrcnn.predict.overlay import draw_overlay
from maskrcnn.predict.predictor import load

PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class InferConfig:
    """Find, outline and classify the cells in pictures with a trained Mask R-CNN."""

    checkpoint: Path
    """best.pt (or last.pt) of a run of train.py."""
    data: Path | None = None
    """Folder with test_release/*.tif and test_image_name_to_ids.json."""
    images: tuple[Path, ...] = ()
    """Pictures, or folders of pictures (TIFF, PNG, JPEG), instead of --data; they get the ids 1, 2, ... in order."""
    out: Path | None = None
    """Where test-results.json, submission.zip and overlays/ go; default: the checkpoint's folder."""
    overlays: int = 8
    """Number of pictures to draw the predictions on, evenly spread over the data; 0: none, -1: all."""
    overlay_score: float = 0.5
    """Lowest score of a cell that is drawn (the results hold all of them)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where it is available."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs, and on CPUs (AVX-512 BF16, AMX), that compute in it; else fp32."""


def infer(config: InferConfig) -> Path:
    """Predict every picture, write ``test-results.json`` and ``submission.zip``, draw overlays; returns the folder.

    Raises:
        InputError: a picture, the id mapping, the checkpoint or the output folder cannot be used. Earlier results
            stay as they were then; overlays of the pictures before may be new.
    """
    images = find_images(config)
    predictor = load(config.checkpoint, config.device, config.precision)
    folder = config.out if config.out is not None else config.checkpoint.parent
    drawn = overlay_indices(len(images), config.overlays)
    results = []
    for index, image in enumerate(tqdm(images, desc="infer", unit="picture")):
        picture = predictor.prepare(image.path)
        detections = predictor.predict_prepared(picture)
        results.extend(detections.to_coco(image.image_id))
        if index in drawn:
            overlay = draw_overlay(picture, detections, predictor.class_names, config.overlay_score)
            path = folder / "overlays" / f"{Path(image.file_name).stem}.png"
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                overlay.save(path, optimize=True)
    json_path, zip_path = write_results(folder, results, images, len(predictor.class_names))
    print(f"{len(results)} cells in {len(images)} pictures: {json_path}, {zip_path}")
    return folder


def find_images(config: InferConfig) -> Sequence[TestImage]:
    """The pictures of ``--data`` or ``--images`` with their ids and sizes; raises InputError where there are none."""
    if (config.data is None) == (not config.images):
        raise InputError("give either --data FOLDER or --images PICTURES")
    if config.data is not None:
        return read_test_release(config.data)
    paths: list[Path] = []
    for entry in config.images:
        if entry.is_dir():
            found = sorted(path for path in entry.iterdir() if path.suffix.lower() in PICTURES)
            if not found:
                raise InputError(f"--images {entry}: no picture ({', '.join(PICTURES)}) in this folder")
            paths.extend(found)
        elif entry.is_file():
            paths.append(entry)
        else:
            raise InputError(f"--images {entry}: no such file or folder")
    sizes = [image_size(path) for path in paths]
    return [
        TestImage(path, path.name, number, height, width)
        for number, (path, (height, width)) in enumerate(zip(paths, sizes, strict=True), start=1)
    ]


def overlay_indices(count: int, wanted: int) -> set[int]:
    """``wanted`` (-1: all) indices spread evenly over ``count`` pictures."""
    if wanted < 0 or wanted >= count:
        return set(range(count))
    return {round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)}
