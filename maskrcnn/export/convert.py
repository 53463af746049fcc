"""``maskrcnn convert``: cells that are known already, in other formats: results, training data, label images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tqdm import tqdm

from maskrcnn.data.coco import CocoDataset
from maskrcnn.data.colours import check_channels
from maskrcnn.data.dataset import CellDataset
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.json_file import read_json
from maskrcnn.data.picture import Picture, open_pictures
from maskrcnn.data.reader import read_mask
from maskrcnn.errors import InputError, writing
from maskrcnn.export.jobs import pictures_in
from maskrcnn.export.names import result_keys
from maskrcnn.export.picture_files import write_cells
from maskrcnn.export.run_folder import CELLS, OPTIONS, file_of, read_record
from maskrcnn.files import file_of_name, printable, to_json, write_text
from maskrcnn.options import Fraction, Range, check_options
from maskrcnn.structures import Cells, InstanceLabels
from maskrcnn.structures.rle import cell_areas

ANNOTATIONS = "annotations.json"

Format = Literal["coco", "labels", "class-labels", "geojson", "rois", "csv"]


@dataclass(frozen=True)
class ConvertConfig:
    """Write cells that are known already in other formats, without a network."""

    out: Path
    """Folder for the files, named as those of infer.py."""
    format: tuple[Format, ...]
    """coco: annotations.json, which train.py reads; labels: one label TIFF per picture; class-labels: one per class
    (<name>/class1.tif, ...), the layout of train.py; geojson: outlines for QuPath; rois: outlines for ImageJ and Fiji;
    csv: one row of measurements per cell (not for --labels, whose pictures are not known)."""
    results: Path | None = None
    """Folder of results of infer.py."""
    data: Path | None = None
    """Folder in the HW3 layout: <name>/image.tif and class1.tif, ..., or train/ with these."""
    coco: Path | None = None
    """COCO annotation file."""
    image_root: Path | None = None
    """Folder of the pictures: of those named in the COCO file (default: the folder of the file), or, for --labels with
    --format coco, of those whose names the label images' names begin with, x.png for x_cp_masks.tif (default: the
    folder of the label image)."""
    labels: tuple[Path, ...] = ()
    """Label images of any program (0 is background, each cell has a number of its own), or folders of them."""
    channels: tuple[Annotated[int, Range(0, 65535)], ...] | None = None
    """Channels (from 0) of the pictures of --data and --coco whose intensities csv measures; default: grey or RGB."""
    score_threshold: Fraction | None = None
    """Minimum score of a cell of --results; default: that of the results' other files. coco contains all cells."""

    def check(self) -> None:
        """Raise InputError for invalid values or combinations."""
        check_options(self)
        sources = {"--results": self.results, "--data": self.data, "--coco": self.coco, "--labels": self.labels or None}
        given = [name for name, value in sources.items() if value is not None]
        if len(given) != 1:
            raise InputError(f"given: {' and '.join(given) or 'no cells'}; expected one of {', '.join(sources)}")
        if self.score_threshold is not None and self.results is None:
            raise InputError("--score-threshold is for --results; true cells have no scores")
        if self.image_root is not None and self.coco is None and not (self.labels and "coco" in self.format):
            raise InputError("--image-root is for --coco, and for --labels with --format coco")
        if self.channels is not None and ("csv" not in self.format or self.results is not None):
            raise InputError(
                "--channels is for --format csv of --data or --coco; --results are of the channels they say"
            )
        check_channels(self.channels)
        if self.labels and "csv" in self.format:
            raise InputError("--format csv measures pictures, which --labels does not name; expected another format")


@dataclass(frozen=True)
class _Item:
    """The cells of one picture.

    Attributes:
        key: names its files.
        cells: all of its cells.
        file_name: path of the picture; of the label image where the picture is not known and not needed.
        open: opens the picture; None if it is not known.
        micrometres: the side of its pixels; None if it is not known.
    """

    key: str
    cells: Cells
    file_name: str
    open: Callable[[], Picture] | None
    micrometres: float | None = None


@dataclass(frozen=True)
class _Source:
    """What is converted."""

    items: Iterator[_Item]
    count: int
    class_names: list[str]
    score_threshold: list[float]


def convert(config: ConvertConfig) -> int:
    """Write the files of ``config.format`` and return the number of cells.

    Raises:
        InputError: options are invalid, or something cannot be read or written.
    """
    config.check()
    if config.results is not None:
        source = _results(config.results, config.score_threshold)
    elif config.labels:
        source = _label_images(config)
    else:
        source = _dataset(config)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    count = 0
    for number, item in enumerate(tqdm(source.items, total=source.count, desc="convert", unit="picture"), start=1):
        shown = item.cells.filter(source.score_threshold)
        _write(config, item, shown, source.class_names)
        count += len(shown)
        if "coco" in config.format:
            height, width = item.cells.size
            name = Path(os.path.relpath(item.file_name, config.out)).as_posix()
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            annotations += _annotations(item.cells, number, len(annotations))
    if "coco" in config.format:
        categories = [{"id": k, "name": name} for k, name in enumerate(source.class_names, start=1)]
        contents = {"images": images, "annotations": annotations, "categories": categories}
        write_text(config.out / ANNOTATIONS, to_json(contents))
    print(f"{count} cells in {source.count} pictures: {printable(str(config.out))}")
    return count


def _write(config: ConvertConfig, item: _Item, cells: Cells, class_names: list[str]) -> None:
    paths: dict[str, Path] = {name: file_of(config.out, item.key, name) for name in config.format if name != "coco"}
    with writing(config.out):
        for name, path in paths.items():
            (path if name == "class-labels" else path.parent).mkdir(parents=True, exist_ok=True)
    write_cells(paths, cells, cells, class_names, partial(_picture_of, item), item.micrometres)


def _picture_of(item: _Item) -> Picture:
    """The picture of an item; raises InputError if it has another size than its cells say."""
    assert item.open is not None  # ConvertConfig.check
    picture = item.open()
    if picture.size != item.cells.size:
        (height, width), (h, w) = picture.size, item.cells.size
        raise InputError(f"{item.file_name}: {height}x{width} pixels, but its cells are of a picture of {h}x{w}")
    return picture


def _annotations(cells: Cells, image_id: int, done: int) -> list[dict[str, Any]]:
    """COCO annotations, with ids from ``done`` + 1 on."""
    rows = zip(cells.to_coco(image_id), cell_areas(cells.rles).tolist(), strict=True)
    return [{"id": number, "area": area, "iscrowd": 0, **row} for number, (row, area) in enumerate(rows, done + 1)]


def _results(folder: Path, score_threshold: float | None) -> _Source:
    """The cells of a folder of infer.py, from its records."""
    try:
        options = read_json(folder / OPTIONS)
        stems = sorted(path.stem for path in (folder / CELLS).glob("*.json"))
    except InputError as error:
        raise InputError(f"--results {folder}: holds no results of infer.py ({error})") from error
    names = options.get("class_names")
    if not names:
        raise InputError(f"--results {folder}: of a version before 0.2.0, which did not keep the names of classes")
    least = options["least_scores"] if score_threshold is None else [score_threshold] * len(names)

    def items() -> Iterator[_Item]:
        for stem in stems:
            record = read_record(folder, stem)
            if record is None:
                raise InputError(f"{folder / CELLS / stem}.json: missing or damaged; run infer.py again")
            path, page = file_of_name(record["source"][0]), record["source"][1]
            channels = options["channels"] and tuple(options["channels"])
            arguments = (path, None, options["level"], channels, options["pixel_size"])
            cells = Cells.of_results(record["results"], (record["height"], record["width"]))
            name, micrometres = str(path.with_name(record["name"])), record.get("pixel_size")
            yield _Item(stem, cells, name, partial(_page, page, *arguments), micrometres)

    return _Source(items(), len(stems), names, least)


def _page(page: int, *arguments: Any) -> Picture:
    return open_pictures(*arguments)[page]


def _label_images(config: ConvertConfig) -> _Source:
    paths = [path for entry in config.labels for path in pictures_in(entry, "--labels")]
    keys = result_keys(paths, [[""]] * len(paths))
    pictures = _pictures_of(paths, config.image_root) if "coco" in config.format else paths

    def items() -> Iterator[_Item]:
        for path, picture, (key,) in zip(paths, pictures, keys, strict=True):
            yield _Item(key, _cells(InstanceLabels.from_planes(read_mask(path)[None], [1])), str(picture), None)

    return _Source(items(), len(paths), ["cell"], [0.0])


def _pictures_of(labels: Sequence[Path], root: Path | None) -> list[Path]:
    """The picture of each label image: the one with the longest name that the label image's name begins with.

    Raises InputError if there is none in ``root`` (None: in the folder of the label image), or several.
    """
    by_folder: dict[Path, dict[str, list[Path]]] = {}
    found = []
    for path in labels:
        folder = path.parent if root is None else root
        if folder not in by_folder:
            by_folder[folder] = defaultdict(list)
            for picture in sorted({*pictures_in(folder, "--image-root")} - {*labels}):
                by_folder[folder][picture.stem].append(picture)
        stem = path.stem
        beginnings = (stem[:end] for end in range(len(stem), 0, -1) if end == len(stem) or not stem[end].isalnum())
        pictures = next((by_folder[folder][name] for name in beginnings if name in by_folder[folder]), [])
        if len(pictures) != 1:
            names = " and ".join(picture.name for picture in pictures) or "none"
            raise InputError(
                f"{path}: its picture in {folder} has a name that its own begins with; found: {names}; expected one "
                "(--image-root says where the pictures lie)"
            )
        found += pictures
    return found


def _dataset(config: ConvertConfig) -> _Source:
    """The true cells of a data set."""
    dataset: CellDataset
    if config.data is not None:
        dataset = Hw3Folder(config.data)
        paths = [dataset.folder / dataset.file_name(index) for index in range(len(dataset))]
    else:
        assert config.coco is not None
        dataset = coco = CocoDataset(config.coco, config.image_root)
        paths = [coco.picture_path(index) for index in range(len(coco))]
    keys = result_keys(paths, [[""]] * len(paths))

    def items() -> Iterator[_Item]:
        for index, (path, (key,)) in enumerate(zip(paths, keys, strict=True)):
            yield _Item(
                key, _cells(dataset.labels(index)), str(path), partial(_page, 0, path, None, 0, config.channels)
            )

    return _Source(items(), len(paths), dataset.class_names, [0.0] * dataset.num_classes)


def _cells(labels: InstanceLabels) -> Cells:
    return Cells.of_masks(labels.to_rle(), labels.classes.tolist(), labels.size)
