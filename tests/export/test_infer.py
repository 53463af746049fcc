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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from pycocotools import mask as coco_mask

import maskrcnn
from maskrcnn.checkpoint import load_checkpoint, save_checkpoint
from maskrcnn.errors import InputError
from maskrcnn.export import cluster
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from maskrcnn.export.jobs import Job, Opener, find_jobs
from tests.conftest import ROOT
from tests.export.cells import two_cells
from tests.export.runs import ALL, command, one_picture, small_pictures


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


def test_pictures_without_a_mapping_are_numbered(tiny_run: Path, tmp_path: Path) -> None:
    small_pictures(tmp_path)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((5, 40, 60), np.uint16), metadata={"axes": "ZYX"})
    outcome = infer(InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path / "out", device="cpu"))
    entries = json.loads((outcome.folder / "test-results.json").read_text())
    assert len(entries) == outcome.cells
    assert {entry["image_id"] for entry in entries} <= set(range(1, 8))
    pages = [f"c_z{depth}" for depth in range(5)]
    assert sorted(path.stem for path in (outcome.folder / "overlays").iterdir()) == ["a", "b", *pages]


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
        assert [feature["properties"]["name"] for feature in features] == [row["id"] for row in with_pixels]
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


def test_processes_divide_the_same_list(
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

    def stop(_config: object, _predictor: object, jobs: Sequence[Job], *_: object) -> None:
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


def test_two_processes_give_the_results_of_one(
    tiny_run: Path, tiny_dataset: Path, results: Path, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--checkpoint", tiny_run / "best.pt", "--data", tiny_dataset, "--out", tmp_path, "--device", "cpu"]
    command = [*launcher, "infer.py", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "test-results.json").read_bytes() == (results / "test-results.json").read_bytes()
    assert len(list((tmp_path / "overlays").iterdir())) == 3


def test_the_headers_of_a_stack_are_read_once(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((4, 40, 60), np.uint8), metadata={"axes": "ZYX"})
    opened: list[Path] = []

    def counted(path: Path, *options: Any) -> list[Any]:
        opened.append(path)
        return maskrcnn.data.picture.open_pictures(path, *options)

    config = InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path / "out", device="cpu")
    assert len(find_jobs(config)) == 4
    monkeypatch.setattr("maskrcnn.export.jobs.open_pictures", counted)
    monkeypatch.setattr("maskrcnn.export.jobs._pages", lambda *_: dict.fromkeys(range(4), ""))
    assert not infer(config).failures
    assert len(opened) == 1


def test_pages_do_not_stay_in_memory(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((4, 40, 60), np.uint8), metadata={"axes": "ZYX"})
    open_page = Opener(InferConfig(images=(tmp_path,)), None)
    jobs = [Job(f"s-{page}", "s.tif", tmp_path / "s.tif", page, page) for page in range(4)]
    kept = []
    for job in jobs:
        assert open_page(job).overview.shape == (40, 60, 3)
        assert open_page(job) is open_page(job)
        kept.append(sum("overview" in vars(page) for page in open_page.pages))
    assert kept == [1, 1, 1, 1]


def test_a_file_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    """By the workers of a cluster, which outlive a run."""
    job = Job("a", "a.png", one_picture(tmp_path / "a.png", 0), 0, 1)
    open_page = Opener(InferConfig(images=(tmp_path,)), None)
    assert open_page(job).size == (64, 80)
    one_picture(tmp_path / "a.png", 1, height=90)
    assert open_page(job).size == (90, 80)


def test_a_worker_loads_a_checkpoint_that_was_replaced(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_run / "best.pt", tmp_path / "best.pt")
    config = InferConfig(tmp_path / "best.pt", images=(tmp_path,), device="cpu")
    first = cluster._worker(config, cluster._version(config))
    assert cluster._worker(config, cluster._version(config)) is first
    os.utime(tmp_path / "best.pt", ns=(1, 1))
    assert cluster._worker(config, cluster._version(config)) is not first
    cluster._worker.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": Path("truth")}, "--truth is for the report"),
        ({"score_threshold": 1.5}, r"--score-threshold is 1\.5; expected 0 to 1"),
        (
            {"box_score_threshold": 0.6, "score_threshold": 0.5},
            r"--box-score-threshold is 0\.6; expected at most --score-threshold",
        ),
        ({"diameter": 0.0}, r"--diameter is 0\.0; expected above 0"),
        ({"level": -1}, "--level is -1"),
        ({"channels": (0, 1, 2, 3)}, "--channels: 4 given, expected one to three"),
        ({"channels": (-1,)}, r"--channels is \(-1,\); expected a list, each a whole number, 0 to 65535"),
        ({"tile": 16}, "--tile is 16"),
    ],
)
def test_options_that_suit_no_picture_end_the_run(tiny_run: Path, tmp_path: Path, options: Any, message: str) -> None:
    one_picture(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match=message):
        infer(InferConfig(tiny_run / "best.pt", images=(tmp_path,), out=tmp_path, device="cpu", **options))


def test_bad_input_ends_with_one_line_and_status_2(tiny_run: Path, tmp_path: Path) -> None:
    ended = command("--checkpoint", tiny_run / "best.pt", "--data", tmp_path / "nowhere", "--out", tmp_path)
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


def test_higher_scores_lie_on_top_in_label_images() -> None:
    labels = two_cells().to_labels()
    assert labels.shape == (48, 64)
    assert labels[15, 15] == 1  # both cover this pixel; the first has the higher score
    assert labels[15, 35] == 2
    assert labels[40, 60] == 0


def test_a_diameter_for_a_network_that_takes_none_ends_the_run(tiny_run: Path, tmp_path: Path) -> None:
    """Before any picture is passed over for it, or loses its earlier results."""
    contents = load_checkpoint(tiny_run / "best.pt")
    save_checkpoint(tmp_path / "own.pt", {**contents, "diameter": None})
    one_picture(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match=r"--diameter is 12\.0, but .*own\.pt was not trained for cells of one size"):
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
