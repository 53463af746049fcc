"""The predictor on pictures of any size: tiles, out of memory, many cells."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

import maskrcnn
from maskrcnn.data.arrays import picture_of
from maskrcnn.data.picture import open_pictures
from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.limits import Limits
from maskrcnn.predict.capacity import default_tile
from maskrcnn.predict.detector import Detector
from maskrcnn.predict.plan import Plan
from maskrcnn.predict.predictor import Predictor
from maskrcnn.predict.tiles import Tile, tile_picture
from maskrcnn.structures import Detections
from tests.stand_in import StandIn

SIDE = 12


class BrightSquares(StandIn):
    """Stands in for the network: every bright square is a cell; too many pixels at once do not fit its memory."""

    def __init__(self, most_pixels: int = 10**9) -> None:
        super().__init__()
        self.most_pixels = most_pixels
        self.shapes: list[tuple[int, ...]] = []

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], masks: bool = True, limits: Limits | None = None
    ) -> list[Detections]:
        if images.numel() / 3 > self.most_pixels:
            raise torch.cuda.OutOfMemoryError("out of memory")
        self.shapes.append(tuple(images.shape))
        return super().forward(images, sizes)

    def detect(self, image: Tensor) -> Detections:
        from skimage.measure import label, regionprops

        regions = regionprops(label(image[0].numpy() > 128))
        size = (image.shape[1], image.shape[2])
        boxes = torch.tensor([[r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]] for r in regions]).float().view(-1, 4)
        count = len(regions)
        return Detections(boxes, torch.ones(count), torch.ones(count).long(), torch.ones(count, 28, 28), size)


def squares(height: int, width: int, step: int = 20) -> tuple[np.ndarray, int]:
    picture = np.zeros((height, width), np.uint8)
    corners = [(y, x) for y in range(3, height - SIDE, step) for x in range(3, width - SIDE, step)]
    for y, x in corners:
        picture[y : y + SIDE, x : x + SIDE] = 255
    return picture, len(corners)


def predictor(model: nn.Module, **options: Any) -> Predictor:
    return Predictor(model, None, ["cell"], torch.device("cpu"), "fp32", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"tile": 96}, {"tile": 100, "batch_size": 3}, {"tile": 64, "overlap": 24}])
def test_tiles_find_each_cell_once(options: dict) -> None:
    picture, count = squares(211, 333)
    model = BrightSquares()
    cells = predictor(model, **{"overlap": 32, **options})(picture)
    assert len(cells) == count
    assert cells.size == (211, 333)
    assert ((cells.boxes[:, 2:] - cells.boxes[:, :2]) == SIDE).all()
    assert max(max(shape[2:]) for shape in model.shapes) == -(-options["tile"] // 32) * 32
    assert max(shape[0] for shape in model.shapes) == options.get("batch_size", 1)


def test_a_picture_that_fits_a_tile_is_not_cut() -> None:
    picture, count = squares(211, 333)
    model = BrightSquares()
    assert len(predictor(model, tile=333)(picture)) == count
    assert model.shapes == [(1, 3, 224, 352)]


def test_pictures_are_read_by_region(tmp_path: Path) -> None:
    picture, count = squares(500, 400)
    tifffile.imwrite(tmp_path / "p.tif", picture, tile=(64, 64), compression="zlib")
    seen: list[tuple[int, int]] = []
    model = predictor(BrightSquares(), tile=128, overlap=32)
    (opened,) = open_pictures(tmp_path / "p.tif", None)
    cells = model.predict(opened, lambda done, total: seen.append((done, total)))
    assert len(cells) == count
    tiles = len(tile_picture((500, 400), 128, 32))
    assert seen == [(i, tiles) for i in range(1, tiles + 1)]


def test_memory_that_runs_out_makes_batches_and_then_tiles_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    picture, count = squares(700, 1000)
    model = BrightSquares(most_pixels=256 * 256)
    cells = predictor(model, tile=512, overlap=64, batch_size=4)
    assert len(cells(picture)) == count
    assert (cells.capacity.batch_size, cells.capacity.tile) == (1, 256)
    assert len(cells(picture)) == count
    said = capsys.readouterr().err
    assert said.count("batches of 1") == said.count("tiles of 256") == 1
    with pytest.raises(InputError, match="out of memory"):
        predictor(BrightSquares(most_pixels=1000), tile=256, overlap=32)(picture)


def test_cells_larger_than_the_overlap_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.zeros((200, 300), np.uint8)
    picture[60:140, 40:260] = 255
    predictor(BrightSquares(), tile=128, overlap=16)(picture)
    assert "are larger than the overlap" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"tile": 16}, {"tile": 64, "overlap": 64}, {"batch_size": 0}])
def test_tiles_that_cannot_be_used(options: dict) -> None:
    with pytest.raises(InputError, match=r"^(tile|overlap|batch_size) is "):
        predictor(BrightSquares(), **options)


def test_cells_below_the_box_score_threshold_are_not_looked_for(tiny_run: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 160, 3), dtype=np.uint8)

    def detect(box_score_threshold: float) -> Detections:
        model = maskrcnn.load(tiny_run / "best.pt", device="cpu", box_score_threshold=box_score_threshold)
        model.overlap_factor = 1.0  # scores of the network
        return model(noise)

    every = detect(0.0)
    least = float(every.scores[len(every) // 2])
    some = detect(least)
    assert 0 < len(some) < len(every)
    assert torch.equal(some.boxes, every.boxes[every.scores > least])


def test_the_default_overlap_fits_a_small_tile() -> None:
    assert predictor(BrightSquares(), tile=64).capacity.overlap == 32
    assert predictor(BrightSquares(), tile=512).capacity.overlap == 128


def test_the_limit_of_cells_grows_with_the_picture(tiny_run: Path) -> None:
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu", tile=1024, box_score_threshold=0.0)
    noise = np.random.default_rng(0).integers(0, 255, (256, 320, 3), dtype=np.uint8)
    assert model.detector.limits.detections_per_image == 20
    assert 20 < len(model(noise)) <= 256 * 320 // 400


def test_a_limit_that_costs_cells_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for step, said in ((20, "a: has more cells than 224 per tile, the limit"), (24, "")):
        picture, count = squares(280, 320, step)
        cells = predictor(BrightSquares()).predict(picture_of(picture, None, name="a"))
        assert len(cells) == count
        assert (said in capsys.readouterr().err) if said else capsys.readouterr().err == ""


def test_overlapping_cells_of_two_tiles_are_lowered_as_those_of_one() -> None:
    tiles = (Tile(0, 0, 100, 100), Tile(0, 50, 100, 100))
    whole, half = ([60.0, 20, 90, 60], 0.9), ([60.0, 20, 90, 34], 0.7)

    def found(tile: Tile, *cells: tuple[list[float], float]) -> Detections:
        count = len(cells)
        boxes = torch.tensor([box for box, _ in cells]).view(count, 4) - torch.tensor([tile.left, 0, tile.left, 0])
        scores = torch.tensor([score for _, score in cells])
        return Detections(boxes, scores, torch.ones(count).long(), torch.ones(count, 28, 28), (100, 100))

    picture = picture_of(np.zeros((100, 150), np.uint8), None)
    plan = Plan(None, 1.0, tiles, 50, 1, None, None)
    for parts in ([found(tiles[0], whole), found(tiles[1], half)], [found(tiles[0], whole, half), found(tiles[1])]):
        cells = predictor(BrightSquares(), score_threshold=0.6).merge(picture, plan, parts)
        assert cells.scores.tolist() == pytest.approx([0.9, 0.35])


def test_augmented_views_and_tiles_go_together(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a picture's statistics are not quite those of its mirror image, in a network with strides
    monkeypatch.setattr(Detector, "with_statistics", lambda self, _: self)
    plain = maskrcnn.load(tiny_run / "best.pt", device="cpu", tile=96, overlap=16)
    flipped = maskrcnn.load(tiny_run / "best.pt", device="cpu", tile=96, overlap=16, augment="flips")
    picture = np.random.default_rng(0).integers(0, 255, (96, 160), dtype=np.uint8)  # tiles mirror each other
    cells = flipped(picture)
    assert cells.size == (96, 160)
    mirrored = flipped(np.ascontiguousarray(picture[:, ::-1]))
    assert len(cells) == len(mirrored)
    assert torch.allclose(cells.scores, mirrored.scores, atol=1e-4)
    assert len(plain(picture)) <= 2 * 20


def test_tiles_are_normalized_as_parts_of_the_picture(tiny_run: Path) -> None:
    """Features of a tile, away from its borders, are those of the whole picture; by its own statistics they are not."""
    rng = np.random.default_rng(0)
    picture = np.repeat(rng.integers(0, 255, (32, 64), dtype=np.uint8), 8, axis=0).repeat(8, axis=1)  # 256 x 512
    picture[:, :256] //= 8
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu", precision="fp32", tile=256, overlap=64)
    image = model.read(picture)
    parts = image[:, :256], image[:, 256:]
    whole = stem(model.detector, image)
    statistics = model.plan(model._open(picture), "none").statistics
    assert statistics is not None
    as_parts = model.detector.with_statistics(statistics)
    in_parts = torch.cat([stem(as_parts, part) for part in parts], dim=2)
    alone = torch.cat([stem(model.detector, part) for part in parts], dim=2)
    away = torch.ones(whole.shape[2], dtype=torch.bool)
    away[54:74] = False  # 10 positions at stride 4 from the border between the parts
    error, error_alone = ((x - whole)[:, :, away].abs().max() / whole.abs().max() for x in (in_parts, alone))
    assert error < 0.02
    assert error_alone > 5 * error
    assert torch.equal(stem(model.detector, image), whole)  # and nothing of it stays behind


def test_the_tissue_of_a_slide_gives_its_statistics(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.full((640, 1280), 230, np.uint8)
    picture[512:576, 1088:1152] = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu", tile=64, overlap=16)
    model.capacity.statistics_pixels = 2 * 64 * 64
    seen: list[tuple[int, int]] = []
    opened = model._open(picture)
    read = opened.read

    def noting(top: int, left: int, height: int, width: int) -> Tensor:
        if (height, width) == (64, 64):
            seen.append((top, left))
        return read(top, left, height, width)

    monkeypatch.setattr(opened, "read", noting)
    model._statistics(opened)
    assert len(seen) == 2
    assert (512, 1088) in seen


def test_a_look_that_does_not_fit_the_memory_is_shortened(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu", tile=64, overlap=16)
    features, batches = MaskRCNN.features, []

    def small(self: MaskRCNN, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        batches.append(len(images))
        if len(images) > 3:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return features(self, images, sizes)

    monkeypatch.setattr(MaskRCNN, "features", small)
    model.capacity.statistics_pixels = 16 * 64 * 64 - 1
    model(np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8), diameter="none")
    assert batches[:3] == [15, 7, 3]
    assert model.capacity.tile == 64
    assert capsys.readouterr().err.count("fewer parts") == 1


def test_a_whole_picture_that_does_not_fit_the_memory_is_looked_at_in_windows(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu", tile=64, overlap=16)
    features, shapes = MaskRCNN.features, []

    def small(self: MaskRCNN, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        shapes.append((len(images), *images.shape[2:]))
        if images.numel() > 3 * 8 * 64 * 64:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return features(self, images, sizes)

    monkeypatch.setattr(MaskRCNN, "features", small)
    model(np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8), diameter="none")
    assert shapes[:2] == [(1, 256, 256), (8, 64, 64)]
    assert model.capacity.tile == 64


@torch.inference_mode()
def stem(detector: Detector, image: Tensor) -> Tensor:
    """The first feature map of an image [H, W, 3]."""
    model = detector.model
    pixels, _ = detector._batch([image])
    x = (pixels.float() / 255 - model.pixel_mean) / model.pixel_std
    return model.backbone.maxpool(torch.relu(model.backbone.bn1(model.backbone.conv1(x))))[0]


def test_a_stack_is_no_single_picture(tiny_run: Path, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((6, 40, 50), np.uint8), metadata={"axes": "ZYX"})
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu")
    with pytest.raises(InputError, match="6 pages"):
        model(tmp_path / "s.tif")
    assert model.predict(open_pictures(tmp_path / "s.tif", model.percentiles)[5]).size == (40, 50)


def test_threads_may_share_a_predictor(tiny_run: Path) -> None:
    """Pictures of several sizes, in tiles and not, with limits and statistics of their own: as one after the other."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (side, 2 * side, 3), dtype=np.uint8) for side in (64, 96, 160, 224)] * 4
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu", tile=128, overlap=32, box_score_threshold=0.0)
    expected = [model(picture) for picture in pictures[:4]] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(model, pictures))
    for cells, same in zip(found, expected, strict=True):
        assert torch.equal(cells.boxes, same.boxes)
        assert torch.equal(cells.scores, same.scores)
        assert torch.equal(cells.masks, same.masks)


def test_the_default_tile_fits_the_memory() -> None:
    assert default_tile(torch.device("cpu")) in (512, 1024)


@pytest.mark.parametrize(("height", "width"), [(200, 120), (90, 130)])
def test_pictures_are_brought_to_the_size_of_training(height: int, width: int) -> None:
    """A network that was trained with --resize sees whole pictures at that size; its cells are in their own pixels."""
    model = BrightSquares()
    picture, expected = squares(height, width)
    found = Predictor(model, None, ["cell"], torch.device("cpu"), resize=256, tile=512)(picture)  # type: ignore[arg-type]
    assert [max(shape) for shape in model.shapes] == [256]
    assert len(found) == expected
    assert found.size == (height, width)
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert sides.sub(SIDE).abs().max() <= 1
    assert found.boxes[0].sub(torch.tensor([3.0, 3, 3 + SIDE, 3 + SIDE])).abs().max() <= 1
