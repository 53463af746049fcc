"""The options of ``infer.py`` and ``maskrcnn predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from maskrcnn import pretrained
from maskrcnn.data.colours import check_channels
from maskrcnn.data.pixel_size import LARGEST, SMALLEST
from maskrcnn.device import Precision
from maskrcnn.errors import InputError
from maskrcnn.options import Fraction, Range, check_options
from maskrcnn.predict.augment import Augment
from maskrcnn.predict.predictor import BatchSize, Diameter, Overlap, TileSide

Format = Literal["coco", "labels", "class-labels", "geojson", "rois", "csv", "overlay", "zarr"]


@dataclass(frozen=True)
class InferConfig:
    """Find, outline and classify the cells in pictures with a trained Mask R-CNN."""

    checkpoint: Path = Path(pretrained.DEFAULT)
    """best.pt (or last.pt) of a run of train.py, or the name of a model that comes with the package."""
    data: Path | None = None
    """Folder with test_release/*.tif and test_image_name_to_ids.json."""
    images: tuple[Path, ...] = ()
    """Pictures (TIFF, PNG, JPEG, slides, OME-Zarr, CZI, ND2, LIF; see docs/formats.md), or folders of pictures or of
    <name>/image.tif, instead of --data; the pictures in them (scenes, fields, times, pages) get the ids 1, 2, ... in
    order."""
    out: Path | None = None
    """Folder for the results; default: the checkpoint's folder, or predictions/ for a model of the package."""
    format: tuple[Format, ...] = ("coco", "overlay")
    """Results to write. coco: test-results.json and submission.zip; labels: one label TIFF per picture; class-labels:
    one per class (<name>/class1.tif, ...); geojson: outlines for QuPath; rois: outlines for ImageJ and Fiji; csv: one
    row of measurements per cell; overlay: outlines drawn on the picture; zarr: a label image in the labels/ group of
    the OME-Zarr that holds the picture."""
    report: bool = False
    """Write report.html: counts, histograms and all pictures with outlines that can be switched on and off."""
    truth: Path | None = None
    """Folder of <name>/class1.tif, ... (as in train/) with the ground truth of the pictures, for scores in the
    report."""
    diameter: Diameter | None = None
    """Median cell diameter (of the circle of equal area) in pixels of the picture, or in micrometres, 8um, by the pixel
    size in the file or --pixel-size; auto: estimated for each picture; none: pictures are predicted at their own scale.
    Default: auto, or none for checkpoints that were trained with --diameter none."""
    pixel_size: Annotated[float, Range(SMALLEST, LARGEST)] | None = None
    """Side of the pixels (of level 0) in micrometres, instead of what the files say."""
    score_threshold: Fraction | None = None
    """Minimum score of a cell in labels, GeoJSON, ROIs, tables and overlays (coco and the report contain all cells);
    default: fitted on validation pictures in training, for each class."""
    box_score_threshold: Fraction | None = None
    """Minimum score of a cell in all results, also coco and the report; default: 0.05. A higher value saves the time
    for masks of cells that the other formats omit, which are most cells of a slide."""
    tile: TileSide | None = None
    """Side in pixels of the tiles in which larger pictures are predicted, at the network's scale (see --diameter);
    default: from the device's memory."""
    overlap: Overlap | None = None
    """Overlap of neighbouring tiles in pixels, at that scale: more than the largest cell; default: 128, at most half of
    a tile."""
    batch_size: BatchSize | None = None
    """Tiles that go through the network together; default: 1 on a CPU, 4 on a GPU."""
    augment: Augment = "none"
    """Average the detections of several views of each picture: mirror images (flips, 4 times the time), also rotated by
    90 degrees (rotations, 8 times), also at 4/5 and 5/4 of the size (scales, 10 times)."""
    level: Annotated[int, Range(0, 64)] = 0
    """Level of a pyramid to take as the picture, so that results are in its pixels; 0 is the full size. Reduced levels
    are read by themselves where the network needs no more pixels, with results in pixels of the full size."""
    channels: tuple[Annotated[int, Range(0, 65535)], ...] | None = None
    """Channels (from 0) of the pictures to use as red, green and blue; a single one becomes grey. Default: as in
    training."""
    dask: str | None = None
    """Predict on the workers of a Dask cluster: the scheduler's address (tcp://host:8786) or its file. The workers need
    the same files by the same paths."""
    overwrite: bool = False
    """Predict all pictures again, also those that an earlier run completed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where it is available."""
    precision: Precision = "auto"
    """auto: bf16 autocast on GPUs and CPUs with bfloat16 units (AVX-512 BF16, AMX), else fp32."""

    def check(self) -> None:
        """Raise InputError for invalid values or combinations."""
        check_options(self)
        if (self.data is None) == (not self.images):
            raise InputError("give either --data FOLDER or --images PICTURES")
        if self.truth is not None and not self.report:
            raise InputError("--truth is for the report; give --report too")
        lowest, shown = self.box_score_threshold, self.score_threshold
        if lowest is not None and shown is not None and lowest > shown:
            raise InputError(f"--box-score-threshold is {lowest}; expected at most --score-threshold, {shown}")
        if "zarr" in self.format and self.level != 0:
            raise InputError(f"--level is {self.level}; --format zarr writes labels of the full size, level 0")
        check_channels(self.channels)
