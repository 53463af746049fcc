"""Training runs: their files, how they stop, and that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

import maskrcnn
from maskrcnn.checkpoint import load_checkpoint, pack_checkpoint, save_checkpoint
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.engine.config import DataOptions, ModelOptions, OptimOptions, TrainConfig
from maskrcnn.engine.log import read_metrics
from maskrcnn.engine.resume import run_config
from maskrcnn.engine.run import Run
from maskrcnn.engine.start import adopt_start, choose_model_options, choose_schedule
from maskrcnn.engine.steps import NonFiniteLossError, build_optimizer, learning_rate_factor
from maskrcnn.engine.train import train
from maskrcnn.errors import InputError
from maskrcnn.model import MaskRCNN
from maskrcnn.model.mask_rcnn import mask_rcnn_resnet_fpn
from tests.conftest import ROOT, tiny_config


def test_a_run_folder_holds_everything(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "loss.png", "last.pt", "best.pt"}
    assert names >= {"precision_recall.png", "classes.png", "thresholds.json"}
    assert not [name for name in names if ".part" in name]
    config = json.loads((tiny_run / "config.json").read_text())
    assert config["model_options"]["mask_loss"] == "dice"
    assert config["seed"] == 0
    rows = read_metrics(tiny_run / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    parts = [key for key in steps[0] if key.startswith("loss_")]
    assert len(parts) == 5
    assert steps[0]["loss"] == pytest.approx(sum(steps[0][key] for key in parts), rel=1e-5)
    validations = [row for row in rows if "mask/AP" in row]
    assert [row["epoch"] for row in validations] == [1, 2]
    assert {"mask/AP50", "mask/AP75", "mask/AP@1000", "mask/AP50/class1", "box/AP"} <= validations[0].keys()
    assert {"dense/AP", "dense/AP50", "dense/AP75_pictures", "dense/PQ/class1", "dense/SQ"} <= validations[0].keys()
    assert np.asarray(Image.open(tiny_run / "loss.png")).std() > 5


def test_the_best_checkpoint_is_that_of_the_best_validation(tiny_run: Path) -> None:
    rows = read_metrics(tiny_run / "metrics.jsonl")
    best = load_checkpoint(tiny_run / "best.pt")
    assert best["metrics"]["mask/AP@1000"] == max(row["mask/AP@1000"] for row in rows if "mask/AP" in row)
    assert tuple(best["percentiles"]) == (0.1, 99.9)


def test_thresholds_are_fitted_and_kept(tiny_run: Path) -> None:
    thresholds = json.loads((tiny_run / "thresholds.json").read_text())
    best = load_checkpoint(tiny_run / "best.pt")
    assert best["thresholds"]["score_threshold"] == tuple(thresholds["score_threshold"])
    assert best["model_options"]["nms_threshold"] == thresholds["nms_threshold"]
    predictor = maskrcnn.load(tiny_run / "best.pt", device="cpu")
    assert predictor.score_threshold == tuple(thresholds["score_threshold"])
    assert predictor.detector.mask_threshold == thresholds["mask_threshold"]
    assert predictor.detector.limits.nms_threshold == thresholds["nms_threshold"]
    assert predictor.diameter == 30


def test_fine_tuning_is_never_worse_than_its_start(tiny_dataset: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Steps that ruin the network: best.pt is the start, whose score comes first."""
    start = tiny_run / "best.pt"
    config = tiny_config(tiny_dataset, tmp_path / "run", epochs=1)
    ruinous = dataclasses.replace(config.optim_options, lr=1.0, warmup_steps=0, clip_norm=0)
    folder = train(dataclasses.replace(config, from_=str(start), optim_options=ruinous))
    validations = [row for row in read_metrics(folder / "metrics.jsonl") if "mask/AP" in row]
    assert [row["step"] for row in validations] == [0, len(_loss_rows(folder))]
    best, before = (load_checkpoint(path) for path in (folder / "best.pt", start))
    if validations[1]["mask/AP@1000"] < validations[0]["mask/AP@1000"]:
        assert best["step"] == 0
    assert best["metrics"]["mask/AP@1000"] == max(row["mask/AP@1000"] for row in validations)
    if best["step"] == 0:
        assert all(torch.equal(value, before["model"][key]) for key, value in best["model"].items())


def test_a_classifier_of_new_classes_learns_faster(tiny_dataset: Path, tmp_path: Path) -> None:
    """Also when the run is resumed; not that of the classes that the start knows."""
    config = tiny_config(tiny_dataset, tmp_path / "run", epochs=1)
    own = dataclasses.replace(config, from_="nuclei", model_options=ModelOptions())
    options = dataclasses.replace(config.optim_options, lr=1e-6, warmup_steps=0)
    train(dataclasses.replace(own, optim_options=options))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["val_every"] == 1
    train(dataclasses.replace(run_config(tmp_path / "run"), optim_options=dataclasses.replace(options, epochs=2)))
    state = load_checkpoint(tmp_path / "run" / "last.pt", to_resume=True)
    assert state["epoch"] == 2
    others, classifier = state["optimizer"]["param_groups"]
    assert classifier["lr"] == pytest.approx(10 * others["lr"])
    before, start = state["model"], load_checkpoint("nuclei")["model"]
    moved = (before["box_head.cls_score.weight"][1] - before["box_head.cls_score.weight"][2]).abs().max()
    fixed = (before["box_head.fc7.weight"] - start["box_head.fc7.weight"]).abs().max()
    assert 0 < fixed < moved
    merged = dataclasses.replace(own.data_options, merge_classes="cell")
    train(dataclasses.replace(own, data_options=merged, out=tmp_path / "same", optim_options=options))
    assert len(load_checkpoint(tmp_path / "same" / "last.pt", to_resume=True)["optimizer"]["param_groups"]) == 1


def test_fine_tuning_takes_the_network_and_how_it_sees(tiny_dataset: Path, tiny_run: Path, tmp_path: Path) -> None:
    start = load_checkpoint(tiny_run / "best.pt")
    start |= {"diameter": 25.0, "percentiles": (1.0, 99.0)}
    save_checkpoint(tmp_path / "start.pt", start)
    config = TrainConfig(data_options=DataOptions(data=(tiny_dataset,)), from_=str(tmp_path / "start.pt"))
    adopted = adopt_start(config)
    assert adopted.data_options.diameter == 25
    assert adopted.data_options.percentiles == (1.0, 99.0)
    options = choose_model_options(adopted, 7, None)
    assert (options["depth"], options["num_classes"], options["mask_loss"]) == (18, 7, "bce")
    assert options["anchor_sizes"] == start["model_options"]["anchor_sizes"]
    other = dataclasses.replace(config, model_options=ModelOptions(depth=34))
    with pytest.raises(InputError, match=r"--depth is 34, but .*start\.pt was trained with 18"):
        adopt_start(other)
    assert adopted.model_options.depth == 18
    assert adopted.anchor_sizes() == start["model_options"]["anchor_sizes"]
    for wrong in ({"diameter": 80.0}, {"percentiles": None}):
        own = dataclasses.replace(config.data_options, **wrong)
        with pytest.raises(InputError, match=rf"--{next(iter(wrong))} is .*was trained with"):
            adopt_start(dataclasses.replace(config, data_options=own))
    with pytest.raises(InputError, match="--from and --backbone-weights"):
        adopt_start(dataclasses.replace(config, model_options=ModelOptions(backbone_weights="x.pt")))


def test_the_best_score_of_an_older_run_is_not_compared(tiny_run: Path) -> None:
    """It went by another one, AP at 100 detections."""
    saved = load_checkpoint(tiny_run / "last.pt")
    model = mask_rcnn_resnet_fpn(**saved["model_options"])
    run = Run(tiny_run, torch.device("cpu"), "fp32", {}, model, model, build_optimizer(model, OptimOptions()))
    run.restore(saved)
    assert run.best == saved["best"]
    run.restore({key: value for key, value in saved.items() if key != "best_by"})
    assert run.best == -math.inf


def test_a_run_of_before_there_were_diameters_goes_on_without(tiny_dataset: Path) -> None:
    values = TrainConfig().to_dict()
    del values["data_options"]["diameter"]
    assert TrainConfig.from_dict(values).data_options.diameter == "none"


@pytest.mark.parametrize(
    ("batches", "epochs", "val_every", "expected"),
    [
        (3, None, None, (134, 6)),  # 5 pictures: 400 steps
        (20, None, None, (20, 1)),
        (500, None, None, (20, 1)),
        (3, 20, None, (20, 1)),
        (3, None, 1, (134, 1)),
    ],
)
def test_few_pictures_get_more_epochs(
    batches: int, epochs: int | None, val_every: int | None, expected: tuple[int, int]
) -> None:
    config = TrainConfig(optim_options=OptimOptions(epochs=epochs), val_every=val_every)
    chosen = choose_schedule(config, batches, new_classes=False)
    assert (chosen.optim_options.epochs, chosen.val_every) == expected
    assert choose_schedule(chosen, batches, new_classes=True) == chosen  # the values of a run stay
    accumulated = dataclasses.replace(config, optim_options=OptimOptions(epochs=epochs, accumulate=4))
    more = choose_schedule(accumulated, batches, new_classes=False).optim_options.epochs
    assert more == (epochs or max(20, -(-400 // -(-batches // 4))))


@pytest.mark.parametrize(("lr", "new_classes", "expected"), [(None, False, 1e-4), (None, True, 1e-3), (0.5, True, 0.5)])
def test_new_classes_get_a_higher_learning_rate(lr: float | None, new_classes: bool, expected: float) -> None:
    config = TrainConfig(optim_options=OptimOptions(lr=lr))
    assert choose_schedule(config, 100, new_classes).optim_options.lr == expected


def test_config_survives_json() -> None:
    config = TrainConfig(
        data_options=DataOptions(data=(Path("somewhere"), Path("b.json")), val=(Path("c"),), percentiles=None),
        model_options=ModelOptions(anchor_sizes=("4", "8", "16", "32", "64,128")),
        optim_options=OptimOptions(lr=3e-4),
        out=Path("runs/x"),
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_whether_a_run_is_aligned(tmp_path: Path) -> None:
    """By default as the weights were trained that it starts from; yes where nothing was."""
    ours = {"neck.inner_blocks.0.0.weight": torch.ones(1)}
    files = {
        "older.pt": {"model": ours, "model_options": {"depth": 18}},
        "exact.pt": {"model": ours, "model_options": {"depth": 18, "aligned": True}},
        "not.pt": {"model": ours, "model_options": {"depth": 18, "aligned": False}},
        "torchvision.pth": {"roi_heads.box_head.fc6.weight": torch.ones(1)},
        "resnet.pth": {"layer1.0.conv1.weight": torch.ones(1)},
    }
    for name, contents in files.items():
        torch.save(contents, tmp_path / name)
    pack_checkpoint(files["exact.pt"], tmp_path / "exact.safetensors")
    files["exact.safetensors"] = {}

    def aligned(weights: str | None, asked: bool | None = None, saved: dict | None = None) -> bool:
        path = None if weights is None else str(tmp_path / weights)
        config = TrainConfig(model_options=ModelOptions(backbone_weights=path, aligned=asked))
        return choose_model_options(config, 4, saved)["aligned"]

    assert aligned(None)
    assert {name: aligned(name) for name in files} == {
        "older.pt": False,
        "exact.pt": True,
        "not.pt": False,
        "torchvision.pth": False,
        "resnet.pth": True,
        "exact.safetensors": True,
    }
    assert aligned("torchvision.pth", asked=True)
    assert not aligned(None, asked=False)
    assert not aligned(None, saved={"model_options": {}})  # a run of an older version goes on as it began
    assert aligned("gone.pt", saved={"model_options": {"aligned": True}})


def _loss_rows(folder: Path) -> list[dict]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


class _StopHereError(Exception):
    pass


def test_resuming_inside_an_epoch_repeats_the_uninterrupted_run_exactly(
    tiny_dataset: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run dies at step 7 of the second epoch, after last.pt of step 6; its resumed rest is that of ``tiny_run``."""
    forward = MaskRCNN.forward
    calls = 0

    def dying(self: MaskRCNN, *args: object, **options: object) -> object:
        nonlocal calls
        calls += self.training
        if calls == 8:
            raise _StopHereError
        return forward(self, *args, **options)

    monkeypatch.setattr(MaskRCNN, "forward", dying)
    with pytest.raises(_StopHereError):
        train(tiny_config(tiny_dataset, tmp_path / "run"))
    monkeypatch.setattr(MaskRCNN, "forward", forward)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 6
    train(run_config(tmp_path / "run"))
    assert _loss_rows(tmp_path / "run") == _loss_rows(tiny_run)
    ours, theirs = (load_checkpoint(folder / "last.pt")["model"] for folder in (tmp_path / "run", tiny_run))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_finished_run_resumes_to_nothing(tiny_run: Path) -> None:
    before = _loss_rows(tiny_run)
    train(run_config(tiny_run))
    assert _loss_rows(tiny_run) == before


def test_a_run_folder_is_not_overwritten(tiny_dataset: Path, tiny_run: Path) -> None:
    with pytest.raises(InputError, match="holds a run already"):
        train(tiny_config(tiny_dataset, tiny_run))


def test_a_loss_that_is_not_finite_names_the_pictures(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = MaskRCNN.forward

    def broken(self: MaskRCNN, *args: object) -> object:
        losses = forward(self, *args)
        return {**losses, "loss_mask": losses["loss_mask"] * math.nan} if self.training else losses

    monkeypatch.setattr(MaskRCNN, "forward", broken)
    with pytest.raises(NonFiniteLossError, match=r"step 1 .*loss_mask nan.* on the pictures \S+, \S+"):
        train(tiny_config(tiny_dataset, tmp_path / "run"))


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 110, 10) for step in range(110)]
    assert factors[:2] == pytest.approx([1 / 11, 2 / 11])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("data_options", {"crop": 100}, "--crop is 100; expected a multiple of 32"),
        ("data_options", {"percentiles": (50.0, 10.0)}, "--percentiles"),
        ("data_options", {"data": (Path("no/such/folder"),)}, "no/such/folder"),
        ("model_options", {"anchor_sizes": ("4", "x", "16", "32", "64")}, "--anchor-sizes"),
        ("optim_options", {"epochs": 0}, "--epochs is 0"),
    ],
)
def test_options_that_no_run_can_use(
    tiny_dataset: Path, tmp_path: Path, group: str, change: dict, message: str
) -> None:
    config = tiny_config(tiny_dataset, tmp_path / "run")
    changed = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **change)})
    with pytest.raises(InputError, match=message):
        train(changed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_run_to_resume(tiny_dataset: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    options = (
        f"--data {tiny_dataset} --out {run} --depth 18 --crop 64 --epochs 50 --roi-batch-per-image 32 --device cpu"
    )

    def heed() -> None:
        """Whatever the tests were started with: a process under nohup ignores SIGHUP, and so would its children."""
        signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "train.py", *options.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    deadline = time.monotonic() + 90
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run / "metrics.jsonl")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{number.name}: stopping after this step or validation; Ctrl-C again stops at once" in errors
    assert f"resume with: python train.py --resume {run}" in errors
    assert "Traceback" not in errors
    assert load_checkpoint(run / "last.pt")["step"] == len(_loss_rows(run))


def _damage(root: Path, kind: str) -> str:
    """Break a data folder; returns what the error must name."""
    picture = sorted((root / "train").iterdir())[0]
    if kind == "empty":
        shutil.rmtree(root / "train")
        (root / "train").mkdir()
        return "train: no folder with an image.tif found"
    if kind == "no image":
        (picture / "image.tif").unlink()
        return f"{picture.name}: no image.tif"
    if kind == "truncated":
        content = (picture / "image.tif").read_bytes()
        (picture / "image.tif").write_bytes(content[: len(content) // 2])
        return f"{picture.name}/image.tif"
    if kind == "negative id":
        tifffile.imwrite(picture / "class1.tif", np.full((96, 96), -3, np.int16))
        return f"{picture.name}/class1.tif: holds the negative id -3"
    (picture / "class9x.tif").write_bytes(b"")
    return f"{picture.name}/class9x.tif: not a class file"


@pytest.mark.parametrize("kind", ["empty", "no image", "truncated", "negative id", "unknown class"])
def test_bad_data_ends_with_one_line_and_status_2(tiny_dataset: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "data")
    expected = _damage(tmp_path / "data", kind)
    options = [
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "run",
        "--depth",
        "18",
        "--crop",
        "64",
        "--val-fraction",
        "0.5",
    ]
    command = [sys.executable, "train.py", *map(str, options), "--device", "cpu", "--epochs", "5"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith("error: ")
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_picture_that_cannot_be_read_any_more_costs_no_step(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read_image = Hw3Folder.read_image

    def fail_later(self: Hw3Folder, index: int) -> Tensor:
        reads.append(index)
        if len(reads) > 6:
            raise InputError("the disk is gone")
        return read_image(self, index)

    monkeypatch.setattr(Hw3Folder, "read_image", fail_later)
    config = dataclasses.replace(tiny_config(tiny_dataset, tmp_path / "run"), save_every=100)
    with pytest.raises(InputError, match="the disk is gone"):
        train(config)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == len(_loss_rows(tmp_path / "run")) > 0


def test_a_run_folder_that_cannot_be_made(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: cannot be written: Not a directory"):
        train(tiny_config(tiny_dataset, tmp_path / "file" / "run"))


def test_pictures_without_cells_train(tiny_dataset: Path, tmp_path: Path) -> None:
    """One of the two pictures of each step has no cell; some steps have none at all."""
    shutil.copytree(tiny_dataset, tmp_path / "data")
    for picture in sorted((tmp_path / "data" / "train").iterdir())[::2]:
        for path in picture.glob("class*.tif"):
            path.unlink()
    folder = train(tiny_config(tmp_path / "data", tmp_path / "run", epochs=1))
    assert all(math.isfinite(row["loss"]) for row in _loss_rows(folder))


def test_training_lowers_the_loss(tiny_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_dataset, tmp_path / "run", epochs=8)
    config = dataclasses.replace(config, optim_options=dataclasses.replace(config.optim_options, lr=5e-4), val_every=8)
    losses = [row["loss"] for row in _loss_rows(train(config))]
    assert np.mean(losses[-8:]) < 0.75 * np.mean(losses[:4])
