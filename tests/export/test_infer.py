"""From a checkpoint to a submission, by the command line and by the Python interface."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import maskrcnn
from maskrcnn.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.export.jobs import Job, find_jobs
from maskrcnn.export.overlay import draw_overlay
from maskrcnn.structures import Detections
from tests.conftest import ROOT
from tests.data.test_picture import OME


@pytest.fixture(scope="module")
def results(tiny_run: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictions")
    outcome = infer(InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=out, device="cpu"))
    assert not outcome.failures
    return outcome.folder


def test_the_submission_is_the_results_with_the_ids_of_the_mapping(results: Path, tiny_dataset: Path) -> None:
    entries = json.loads((results / "test-results.json").read_text())
    with zipfile.ZipFile(results / "submission.zip") as archive:
        assert archive.namelist() == ["test-results.json"]
        assert json.loads(archive.read("test-results.json")) == entries
    mapping = json.loads((tiny_dataset / "test_image_name_to_ids.json").read_text())
    sizes = {entry["id"]: [entry["height"], entry["width"]] for entry in mapping}
    assert entries
    for entry in entries:
        assert entry["segmentation"]["size"] == sizes[entry["image_id"]]
        assert entry["category_id"] in (1, 2, 3, 4)
        assert 0 <= entry["score"] <= 1
        assert coco_mask.decode(entry["segmentation"]).shape == tuple(sizes[entry["image_id"]])
    assert len(list((results / "overlays").glob("*.png"))) == len(mapping)
    assert not list(results.rglob("*.part"))


def test_three_lines_of_python_give_the_same_cells(results: Path, tiny_run: Path, tiny_dataset: Path) -> None:
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu")
    mapping = json.loads((tiny_dataset / "test_image_name_to_ids.json").read_text())
    cells = model(tiny_dataset / "test_release" / mapping[0]["file_name"])
    written = [e for e in json.loads((results / "test-results.json").read_text()) if e["image_id"] == mapping[0]["id"]]
    assert cells.to_coco(mapping[0]["id"]) == written
    assert cells.to_labels().shape == cells.size


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 4), (33, 86, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_of_any_kind_are_pictures(tiny_run: Path, shape: tuple[int, ...], dtype: type) -> None:
    model = maskrcnn.load(tiny_run / "best.pt", device="cpu")
    array = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    assert model(array).size == shape[:2]


def small_pictures(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("b.png", "a.jpg"):
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(folder / name)


def test_pictures_without_a_mapping_are_numbered(tiny_run: Path, tmp_path: Path) -> None:
    small_pictures(tmp_path)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((5, 40, 60), np.uint16), metadata={"axes": "ZYX"})
    outcome = infer(InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path / "out", device="cpu"))
    entries = json.loads((outcome.folder / "test-results.json").read_text())
    assert len(entries) == outcome.cells
    assert {entry["image_id"] for entry in entries} <= set(range(1, 8))
    pages = [f"c-{page}" for page in range(1, 6)]
    assert sorted(path.stem for path in (outcome.folder / "overlays").iterdir()) == ["a", "b", *pages]


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (["x/a.tif", "x/b.png"], ["a", "b"]),
        (["x/a.tif", "x/a.png"], ["a.tif", "a.png"]),
        (["x/a.tif", "y/a.tif"], ["a.tif", "a.tif-2"]),
        (["t/one/image.tif", "t/two/image.tif"], ["one", "two"]),
    ],
)
def test_each_picture_has_files_of_its_own(tmp_path: Path, files: list[str], keys: list[str]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / file, np.zeros((20, 30), np.uint8))
    jobs = find_jobs(InferConfig(Path("best.pt"), images=tuple(tmp_path / file for file in files)))
    assert [job.key for job in jobs] == keys
    assert [job.image_id for job in jobs] == list(range(1, len(files) + 1))


def test_a_page_and_a_picture_of_the_same_name_have_files_of_their_own(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((2, 20, 30), np.uint8), metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "s-1.tif", np.zeros((20, 30), np.uint8))
    for images in ((tmp_path,), (tmp_path / "s.tif", tmp_path / "s-1.tif")):
        keys = [job.key for job in find_jobs(InferConfig(Path("best.pt"), images=images))]
        assert len(set(keys)) == 3


def test_a_folder_given_twice_is_predicted_once(tmp_path: Path) -> None:
    small_pictures(tmp_path)
    jobs = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path, tmp_path / "b.png")))
    assert [job.key for job in jobs] == ["a", "b"]


def test_the_files_of_an_ome_set_are_predicted_once(tmp_path: Path) -> None:
    for number in range(2):
        pixels = np.full((70, 90), number, np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.ome.tif", pixels, description=OME.format(number), metadata=None)
    jobs = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))
    assert [(job.key, job.path.name, job.page) for job in jobs] == [
        ("0.ome", "0.ome.tif", 0),
        ("1.ome", "1.ome.tif", 1),
    ]
    alone = find_jobs(InferConfig(Path("best.pt"), images=(tmp_path / "1.ome.tif",)))
    assert [(job.key, job.page) for job in alone] == [("1.ome-1", 0), ("1.ome-2", 1)]
    (tmp_path / "pictures").symlink_to(tmp_path)
    assert len(find_jobs(InferConfig(Path("best.pt"), images=(tmp_path / "pictures",)))) == 2


def test_a_link_to_a_picture_is_a_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), np.uint8))
    (tmp_path / "b.tif").symlink_to(tmp_path / "a.tif")
    assert [job.key for job in find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))] == ["a", "b"]


def test_pictures_are_not_decoded_to_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pictures(tmp_path)
    monkeypatch.setattr("maskrcnn.data.picture.decode_pillow", lambda *_, **__: pytest.fail("decoded"))
    assert len(find_jobs(InferConfig(Path("best.pt"), images=(tmp_path,)))) == 2


ALL: tuple[Any, ...] = ("coco", "labels", "class-labels", "geojson", "csv", "overlay")


def test_every_format_says_the_same(tiny_run: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """Label image, its classes, outlines, table and COCO results of the same cells."""
    config = InferConfig(
        tiny_run / "best.pt",
        data=tiny_dataset,
        out=tmp_path,
        format=ALL,
        score_threshold=0.0,
        report=True,
        device="cpu",
    )
    outcome = infer(config)
    entries = json.loads((tmp_path / "test-results.json").read_text())
    for test in json.loads((tiny_dataset / "test_image_name_to_ids.json").read_text()):
        key = Path(test["file_name"]).stem
        cells = [entry for entry in entries if entry["image_id"] == test["id"]]
        with (tmp_path / "csv" / f"{key}.csv").open() as file:
            rows = list(csv.DictReader(file))
        features = json.loads((tmp_path / "geojson" / f"{key}.geojson").read_text())["features"]
        labels = tifffile.imread(tmp_path / "labels" / f"{key}.tif")
        assert labels.shape == (test["height"], test["width"])
        assert [int(row["class"]) for row in rows] == [cell["category_id"] for cell in cells]
        assert [int(row["area"]) for row in rows] == [coco_mask.area(cell["segmentation"]) for cell in cells]
        with_pixels = [row for row in rows if int(row["area"])]
        assert [str(feature["id"]) for feature in features] == [row["id"] for row in with_pixels]
        planes = [tifffile.imread(tmp_path / "class-labels" / key / f"class{k}.tif") for k in range(1, 5)]
        top = labels[labels > 0]
        assert set(np.unique(top)) <= {int(row["id"]) for row in with_pixels}
        for row in with_pixels:
            number = int(row["id"])
            assert (planes[int(row["class"]) - 1] == number).sum() >= (labels == number).sum()
    assert outcome.cells == len(entries)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("size", [(33, 86), (480, 200)])
def test_the_least_and_the_longest_pictures(tiny_run: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "p.tif", rng.integers(0, 255, (*size, 4), dtype=np.uint8), photometric="rgb")
    config = InferConfig(
        tiny_run / "best.pt", images=(tmp_path / "p.tif",), out=tmp_path, format=ALL, tile=128, overlap=64, device="cpu"
    )
    assert not infer(config).failures
    assert tifffile.imread(tmp_path / "labels" / "p.tif").shape == size


def test_the_real_sample_in_every_format(tiny_run: Path, shared_data: Path, tmp_path: Path) -> None:
    train = shared_data / "hw3_sample" / "train"
    config = InferConfig(
        tiny_run / "best.pt", images=(train,), truth=train, out=tmp_path, format=ALL, report=True, device="cpu"
    )
    outcome = infer(config)
    assert not outcome.failures
    (name,) = (path.name for path in train.iterdir())
    for file in (f"labels/{name}.tif", f"geojson/{name}.geojson", f"csv/{name}.csv", f"overlays/{name}.png"):
        assert (tmp_path / file).is_file()
    assert "AP50" in (tmp_path / "report.html").read_text()


def test_a_run_that_was_stopped_goes_on(tiny_run: Path, tiny_dataset: Path, results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    first, *others = sorted((out / "cells").iterdir())
    first.unlink()
    (out / "test-results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in others}
    config = InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=out, device="cpu")
    infer(config)
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert (out / "test-results.json").read_bytes() == (results / "test-results.json").read_bytes()
    infer(replace(config, overwrite=True))
    assert all(path.stat().st_mtime_ns > before[path] for path in others)
    assert (out / "test-results.json").read_bytes() == (results / "test-results.json").read_bytes()


def one_picture(path: Path, seed: int, height: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, 80), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (out / "cells").iterdir()}


def test_another_picture_of_the_same_name_is_predicted(tiny_run: Path, tmp_path: Path) -> None:
    """The results go beside the checkpoint by default, so runs on several folders meet there."""
    first, second = one_picture(tmp_path / "x" / "a.png", 0), one_picture(tmp_path / "y" / "a.png", 1, height=90)
    config = InferConfig(tiny_run / "best.pt", images=(first,), out=tmp_path / "out", device="cpu")
    infer(config)
    infer(replace(config, images=(second,)))
    assert records(tmp_path / "out")["a"]["height"] == 90
    one_picture(second, 2, height=70)
    infer(replace(config, images=(second,)))
    assert records(tmp_path / "out")["a"]["height"] == 70


def test_a_picture_that_comes_later_moves_the_ids_of_the_others(tiny_run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    one_picture(folder / "b.png", 0)
    config = InferConfig(tiny_run / "best.pt", images=(folder,), out=out, device="cpu")
    assert infer(config).cells
    one_picture(folder / "a.png", 1, height=90)
    infer(config)
    results = json.loads((out / "test-results.json").read_text())
    assert {(r["image_id"], r["segmentation"]["size"][0]) for r in results} == {(1, 90), (2, 64)}


def test_overwriting_that_is_stopped_leaves_nothing_of_other_options(
    tiny_run: Path, tiny_dataset: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(results, out)
    config = InferConfig(tiny_run / "last.pt", data=tiny_dataset, out=out, overwrite=True, device="cpu")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("maskrcnn.export.infer._predict_all", stop)
        with pytest.raises(KeyboardInterrupt):
            infer(config)
    assert not records(out)
    infer(replace(config, overwrite=False))
    assert len(records(out)) == 3


def test_processes_share_out_the_same_list(
    tiny_run: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another process has finished a picture before this one has looked."""
    taken: list[str] = []

    def first_process(make: Callable[[], Any]) -> Any:
        made = make()
        for job in find_jobs(config)[:1]:
            for name in (f"cells/{job.key}.json", f"overlays/{job.key}.png"):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text("{}")
        return made

    def stop(_config: object, _predictor: object, jobs: Sequence[Job], _folder: Path) -> None:
        taken.extend(job.key for job in jobs)
        raise KeyboardInterrupt

    config = InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=tmp_path, device="cpu")
    monkeypatch.setattr("maskrcnn.distributed.rank", lambda: 1)
    monkeypatch.setattr("maskrcnn.distributed.world_size", lambda: 2)
    monkeypatch.setattr("maskrcnn.distributed.from_main", first_process)
    monkeypatch.setattr("maskrcnn.export.infer._predict_all", stop)
    with pytest.raises(KeyboardInterrupt):
        infer(config)
    assert taken == [find_jobs(config)[1].key]


def test_results_of_other_options_are_not_mixed(tiny_run: Path, tiny_dataset: Path, results: Path) -> None:
    before = (results / "test-results.json").read_bytes()
    with pytest.raises(InputError, match=r"results of another augment; choose another --out, or --overwrite"):
        infer(InferConfig(tiny_run / "best.pt", data=tiny_dataset, out=results, augment="flips", device="cpu"))
    with pytest.raises(InputError, match="another checkpoint"):
        infer(InferConfig(tiny_run / "last.pt", data=tiny_dataset, out=results, device="cpu"))
    assert (results / "test-results.json").read_bytes() == before


def test_two_processes_give_the_results_of_one(
    tiny_run: Path, tiny_dataset: Path, results: Path, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    options = ["--checkpoint", tiny_run / "best.pt", "--data", tiny_dataset, "--out", tmp_path, "--device", "cpu"]
    command = [*launcher, "infer.py", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "test-results.json").read_bytes() == (results / "test-results.json").read_bytes()
    assert len(list((tmp_path / "overlays").iterdir())) == 3


def _command(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "infer.py", *map(str, options), "--device", "cpu"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_broken_pictures_are_passed_over_and_named(tiny_run: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(tiny_dataset, data, ignore=shutil.ignore_patterns("train"))
    broken, small, _ = sorted((data / "test_release").iterdir())
    contents = broken.read_bytes()
    broken.write_bytes(contents[:500])
    tifffile.imwrite(small, np.zeros((20, 30), np.uint8))
    ended = _command("--checkpoint", tiny_run / "best.pt", "--data", data, "--out", out)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert f"warning: passed over: {broken}" in ended.stderr
    with (out / "failures.csv").open() as file:
        rows = {row["picture"]: row["error"] for row in csv.DictReader(file)}
    assert set(rows) == {broken.stem, small.stem}
    assert "20x30 pixels, but the id mapping says 96x96" in rows[small.stem]
    with zipfile.ZipFile(out / "submission.zip") as archive:
        mapping = json.loads((data / "test_image_name_to_ids.json").read_text())
        ids = {entry["id"] for entry in mapping if entry["file_name"] not in (broken.name, small.name)}
        assert {result["image_id"] for result in json.loads(archive.read("test-results.json"))} <= ids
    assert not list(out.rglob(f"{broken.stem}*"))
    broken.write_bytes(contents)
    small.write_bytes((tiny_dataset / "test_release" / small.name).read_bytes())
    assert _command("--checkpoint", tiny_run / "best.pt", "--data", data, "--out", out).returncode == 0
    assert not (out / "failures.csv").exists()


def test_a_picture_that_breaks_leaves_no_results_of_its_old_self(tiny_run: Path, tmp_path: Path) -> None:
    picture, out = one_picture(tmp_path / "a.png", 0), tmp_path / "out"
    one_picture(tmp_path / "b.png", 1)
    config = InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=out, format=ALL, device="cpu")
    infer(config)
    assert len(list(out.glob("*/a*"))) == 6  # the record, four files and the folder of classes
    picture.write_bytes(picture.read_bytes()[:100])
    assert set(infer(config).failures) == {"a"}
    assert not [path for path in out.rglob("*") if path.is_file() and "a" in (path.stem, path.parent.name)]
    assert len(list((out / "class-labels" / "b").iterdir())) == 4


def test_the_headers_of_a_stack_are_read_once(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((4, 40, 60), np.uint8), metadata={"axes": "ZYX"})
    opened: list[Path] = []

    def counted(path: Path, *options: Any) -> list[Any]:
        opened.append(path)
        return maskrcnn.data.picture.open_pictures(path, *options)

    config = InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path / "out", device="cpu")
    assert len(find_jobs(config)) == 4
    monkeypatch.setattr("maskrcnn.export.jobs.open_pictures", counted)
    monkeypatch.setattr("maskrcnn.export.jobs._pages", lambda *_: [0, 1, 2, 3])
    assert not infer(config).failures
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": Path("truth")}, "--truth is for the report"),
        ({"score_threshold": 1.5}, r"--score-threshold is 1\.5; expected 0 to 1"),
        (
            {"box_score_threshold": 0.6, "score_threshold": 0.5},
            r"--box-score-threshold is 0\.6; expected 0 to --score-threshold",
        ),
        ({"diameter": 0.0}, r"--diameter is 0\.0; expected pixels above 0, auto or none"),
        ({"level": -1}, "--level is -1"),
        ({"channels": (0, 1, 2, 3)}, "--channels: 4 given, expected one to three"),
        ({"channels": (-1,)}, "--channels: -1 given"),
        ({"tile": 16}, "--tile 16"),
    ],
)
def test_options_that_suit_no_picture_end_the_run(tiny_run: Path, tmp_path: Path, options: Any, message: str) -> None:
    one_picture(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match=message):
        infer(InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path, device="cpu", **options))


def test_bad_input_ends_with_one_line_and_status_2(tiny_run: Path, tmp_path: Path) -> None:
    ended = _command("--checkpoint", tiny_run / "best.pt", "--data", tmp_path / "nowhere", "--out", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("options", [(), ("--data", "nowhere"), ("--images", "nowhere.png")])
def test_nothing_to_predict(tiny_run: Path, options: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"--data|nowhere"):
        infer(
            InferConfig(
                tiny_run / "best.pt",
                data=Path("nowhere") if "--data" in options else None,
                images=(Path("nowhere.png"),) if "--images" in options else (),
            )
        )


def _detections(count: int = 2) -> Detections:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 24.0], [10.0, 8.0, 40.0, 30.0]])[:count]
    return Detections(
        boxes,
        torch.tensor([0.9, 0.8])[:count],
        torch.tensor([1, 3])[:count],
        torch.ones(count, 28, 28),
        (48, 64),
    )


def test_overlays_colour_the_cells_and_leave_the_rest() -> None:
    image = torch.full((48, 64, 3), 100, dtype=torch.uint8)
    picture = np.asarray(draw_overlay(image, _detections(), ["class1", "class2", "class3"], shortest_side=48))
    assert picture.shape[1] == 64
    assert (picture[1, 1] == 100).all()
    inside = picture[14, 8].astype(int)
    assert inside[0] > 100 > inside[2]  # yellow fill over grey
    large = draw_overlay(image, _detections(0), ["class1"], shortest_side=96)
    assert large.size[0] == 128


def test_higher_scores_lie_on_top_in_label_images() -> None:
    labels = _detections().to_labels()
    assert labels.shape == (48, 64)
    assert labels[15, 15] == 1  # both cover this pixel; the first has the higher score
    assert labels[15, 35] == 2
    assert labels[40, 60] == 0


def test_a_diameter_for_a_network_that_takes_none_ends_the_run(tiny_run: Path, tmp_path: Path) -> None:
    """Before any picture is passed over for it, or loses its earlier results."""
    contents = load_checkpoint(tiny_run / "best.pt")
    save_checkpoint(tmp_path / "own.pt", {**contents, "diameter": None})
    one_picture(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match=r"--diameter is 12\.0, but .*own\.pt was trained at the pictures' own scale"):
        infer(InferConfig(tmp_path / "own.pt", images=(tmp_path / "a.png",), out=tmp_path, diameter=12.0, device="cpu"))


def test_the_record_says_how_large_cells_were_taken_to_be(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_picture(tmp_path / "a.png", 0)
    options = {"images": (tmp_path / "a.png",), "format": ("csv",), "device": "cpu"}
    infer(InferConfig(tiny_run / "best.pt", out=tmp_path / "given", diameter=12.0, **options))
    assert json.loads((tmp_path / "given" / "cells" / "a.json").read_text())["diameter"] == 12
    assert "cells taken to be 12 pixels across" in capsys.readouterr().out
    infer(InferConfig(tiny_run / "best.pt", out=tmp_path / "own", diameter="none", **options))
    assert json.loads((tmp_path / "own" / "cells" / "a.json").read_text())["diameter"] is None


def test_the_legend_has_room_for_scores_by_class() -> None:
    """They are one range: nothing is drawn up to the right edge."""
    image = torch.zeros(300, 300, 3, dtype=torch.uint8)
    names = ["class1", "class2", "class3", "class4"]
    picture = np.asarray(draw_overlay(image, replace(_detections(), size=(300, 300)), names, (0.2, 0.5, 0.7, 0.75)))
    assert (picture[-20:, -6:] == 32).all()
    assert (picture[-20:, -200:] > 200).any()
