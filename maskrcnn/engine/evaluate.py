"""Evaluation of a checkpoint: ``maskrcnn evaluate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from maskrcnn import pretrained
from maskrcnn.checkpoint import load_checkpoint, locate
from maskrcnn.data.colours import check_channels
from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.pixel_size import LARGEST, SMALLEST
from maskrcnn.device import Precision
from maskrcnn.engine.config import DataOptions, TrainConfig
from maskrcnn.engine.datasets import build_datasets, read_datasets
from maskrcnn.errors import InputError, writing
from maskrcnn.evaluation.coco_ap import MAX_DETECTIONS
from maskrcnn.evaluation.dense import AT
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.files import to_json, write_text
from maskrcnn.options import Micrometres, Range, check_options
from maskrcnn.predict.augment import Augment
from maskrcnn.predict.load import load
from maskrcnn.predict.predictor import Diameter, Predictor, TileSide

SCORES = "scores.json"


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a checkpoint on pictures with ground truth, predicted as infer.py does."""

    checkpoint: Path = Path(pretrained.DEFAULT)
    """best.pt or last.pt of a run, or the name of a model that comes with the package."""
    data: tuple[Path, ...] = ()
    """Data of the run (in its current location): the validation pictures are scored, which were not used to train
    weights, but to fit thresholds. Default: the folders recorded in the checkpoint."""
    val: tuple[Path, ...] = ()
    """Folders in the HW3 layout, or COCO files; all their pictures are scored."""
    coco: Path | None = None
    """A COCO file; all its pictures are scored."""
    image_root: Path | None = None
    """Folder of the pictures named in COCO files; default: the folder of the file."""
    merge_classes: bool = False
    """Take all classes of the data as the model's only one; default: as in training."""
    channels: tuple[Annotated[int, Range(0, 65535)], ...] | None = None
    """Channels (from 0) of the pictures to use as red, green and blue; default: as in training."""
    diameter: Diameter | None = None
    """See infer.py."""
    pixel_size: Annotated[float, Range(SMALLEST, LARGEST)] | None = None
    """Side of the pixels in micrometres, for a diameter in micrometres, instead of what the files say."""
    augment: Augment = "none"
    """See infer.py."""
    tile: TileSide | None = None
    """See infer.py."""
    out: Path | None = None
    """Folder for scores.json, precision_recall.png and classes.png; default: not written."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where it is available."""
    precision: Precision = "auto"
    """auto: bf16 autocast on GPUs and CPUs with bfloat16 units (AVX-512 BF16, AMX), else fp32."""


def evaluate_checkpoint(config: EvaluateConfig) -> dict[str, float]:
    """Print and return the scores (:func:`maskrcnn.evaluation.evaluate.score`) of a checkpoint.

    Raises:
        InputError: the checkpoint or the data is invalid, or the data has other classes than the checkpoint.
    """
    check_options(config)
    check_channels(config.channels)
    diameter = config.diameter
    if config.pixel_size is not None:
        if not isinstance(diameter, str) or diameter in ("auto", "none"):
            raise InputError(f"--pixel-size is {config.pixel_size}; expected none without a --diameter such as 8um")
        diameter = Micrometres.of(diameter) / config.pixel_size
    predictor = load(config.checkpoint, config.device, config.precision, config.tile, augment=config.augment)
    dataset = _pictures(config, predictor)
    if config.out is not None:
        with writing(config.out):
            config.out.mkdir(parents=True, exist_ok=True)
    scores = evaluate(predictor, dataset, diameter, plots=config.out)
    if config.out is not None:
        write_text(config.out / SCORES, to_json(scores, indent=2) + "\n")
    print(f"{len(dataset)} pictures")
    print(scores_table(scores, predictor.class_names, sorted(set(dataset.sources))))
    return scores


def _pictures(config: EvaluateConfig, predictor: Predictor) -> CellDataset:
    contents = load_checkpoint(config.checkpoint)
    run = TrainConfig.from_dict(contents["config"])
    merge = run.data_options.merge_classes
    if config.merge_classes:
        if len(predictor.class_names) > 1:
            raise InputError(
                f"--merge-classes: {config.checkpoint} has {len(predictor.class_names)} classes; expected one"
            )
        merge = predictor.class_names[0]
    named = (*config.val, *(() if config.coco is None else (config.coco,)))
    options: DataOptions = dataclasses.replace(
        run.data_options,
        merge_classes=merge,
        num_classes=None if merge is not None or len(predictor.class_names) == 1 else len(predictor.class_names),
        image_root=config.image_root or (None if named else run.data_options.image_root),
        channels=config.channels or run.data_options.channels,
    )
    if named and config.data:
        raise InputError("--data and --val or --coco: give either a run's data or pictures that are all scored")
    if named:
        dataset: CellDataset = read_datasets(named, options)
    elif options.val and config.data:
        raise InputError("--data: the run had validation pictures of their own; give them with --val")
    else:
        options = dataclasses.replace(options, data=config.data or options.data)
        folder = locate(config.checkpoint).parent
        if not options.data and not (folder / "synthetic").is_dir():
            raise InputError(f"{config.checkpoint}: does not say where its data lies; give --data, --val or --coco")
        if locate(config.checkpoint).suffix == ".safetensors":
            raise InputError(
                f"--data: {config.checkpoint} does not say which pictures validated it; give --val or --coco with "
                "pictures that are all scored"
            )
        dataset = _validation_pictures(contents, dataclasses.replace(run, data_options=options), folder)
    if dataset.class_names != list(predictor.class_names)[: dataset.num_classes]:
        hint = "; --merge-classes takes all as one" if len(predictor.class_names) == 1 else ""
        raise InputError(
            f"the pictures have the classes {', '.join(dataset.class_names)}, "
            f"but {config.checkpoint} knows {', '.join(predictor.class_names)}{hint}"
        )
    return dataset


def _validation_pictures(contents: dict[str, Any], run: TrainConfig, folder: Path) -> CellDataset:
    """The validation pictures of a run, by the names in its checkpoint; for old checkpoints without names, the data is
    split again as in the run."""
    if "pictures" not in contents or run.data_options.val:
        return build_datasets(run, folder).val
    options = run.data_options
    dataset = read_datasets(options.data or (folder / "synthetic",), options)
    indices = {name: index for index, name in enumerate(dataset.names)}
    names = contents["pictures"]["val"]
    if missing := [name for name in names if name not in indices]:
        raise InputError(
            f"{' '.join(map(str, options.data))}: {len(missing)} of the run's {len(names)} validation pictures are not "
            f"there, such as {missing[0]}"
        )
    return dataset.subset([indices[name] for name in names])


def scores_table(scores: dict[str, float], class_names: tuple[str, ...], sources: list[str]) -> str:
    """The most important scores as a text table, one row per class and source."""
    limit = f"@{MAX_DETECTIONS}"
    columns = {f"AP{limit}": f"mask/AP{limit}", f"AP50{limit}": f"mask/AP50{limit}", "AP@100": "mask/AP"}
    columns |= {"AP50@100": "mask/AP50"} | {f"TP/(TP+FP+FN) {iou}": f"dense/{name}" for name, iou in AT.items()}
    rows = [("all", "")] + [(name, f"/class{k}") for k, name in enumerate(class_names, start=1)]
    rows += [(source, f"/{source}") for source in sources]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "  " + "  ".join(columns)]
    for name, suffix in rows:
        values = [scores.get(key + suffix) for key in columns.values()]
        if all(value is None for value in values):
            continue
        cells = (
            f"{value:>{len(column)}.3f}" for column, value in zip(columns, values, strict=True) if value is not None
        )
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    return "\n".join(lines)
