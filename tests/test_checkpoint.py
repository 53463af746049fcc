"""Checkpoints are written as a whole or not at all; foreign and damaged ones are rejected with one line."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import maskrcnn
from maskrcnn import pretrained
from maskrcnn.checkpoint import build_model, load_checkpoint, load_optimizer_state, pack_checkpoint, save_checkpoint
from maskrcnn.engine.config import OptimOptions, TrainConfig
from maskrcnn.engine.start import adopt_start
from maskrcnn.engine.steps import build_optimizer
from maskrcnn.engine.train import train
from maskrcnn.errors import InputError
from maskrcnn.model import mask_rcnn_resnet_fpn
from maskrcnn.model.weight_files import read_torch

OPTIONS: dict[str, Any] = {
    "depth": 18,
    "num_classes": 2,
    "norm": "group",
    "stages": 2,
    "width": 32,
    "channels": 32,
    "box_hidden": 16,
    "anchor_sizes": ((8.0, 4.0), (16.0,), (32.0,)),
}


@pytest.fixture
def contents() -> dict[str, Any]:
    """What train.py puts into best.pt, of a small network."""
    return {
        "model": mask_rcnn_resnet_fpn(**OPTIONS).state_dict(),
        "model_options": dict(OPTIONS),
        "config": TrainConfig().to_dict(),
        "percentiles": (0.1, 99.9),
        "diameter": 30.0,
        "class_names": ["a", "b"],
        "thresholds": {"score_threshold": [0.4, 0.6], "mask_threshold": 0.5},
        "step": 7,
        "metrics": {"mask/AP": 0.5},
    }


def test_a_model_comes_back_bit_for_bit(contents: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, contents)
    model = build_model(load_checkpoint(path), path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, contents["model"][key]), key
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_the_average_of_the_weights_predicts(contents: dict[str, Any], tmp_path: Path) -> None:
    """last.pt of a run with --ema holds both."""
    average = {key: value + 1 for key, value in contents["model"].items()}
    save_checkpoint(tmp_path / "last.pt", contents | {"ema": {"model": average, "updates": 3}})
    model = build_model(load_checkpoint(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert all(torch.equal(value, average[key]) for key, value in model.state_dict().items())
    save_checkpoint(tmp_path / "last.pt", contents | {"ema": None})
    model = build_model(load_checkpoint(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert all(torch.equal(value, contents["model"][key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("aligned", [None, False, True])
def test_a_checkpoint_that_does_not_say_is_not_aligned(
    contents: dict[str, Any], tmp_path: Path, aligned: bool | None
) -> None:
    """It was written before the option was there, and trained with torchvision's mask targets."""
    if aligned is not None:
        contents["model_options"]["aligned"] = aligned
    save_checkpoint(tmp_path / "best.pt", contents)
    model = build_model(load_checkpoint(tmp_path / "best.pt"), tmp_path / "best.pt")
    expected = bool(aligned)
    assert (model.aligned, model.box_head.pool.aligned, model.mask_head.pool.aligned) == (expected,) * 3


def test_another_class_count_is_named(contents: dict[str, Any], tmp_path: Path) -> None:
    contents["model_options"]["num_classes"] = 4
    save_checkpoint(tmp_path / "best.pt", contents)
    with pytest.raises(InputError, match=r"best\.pt: 2 class_names for 4 classes"):
        load_checkpoint(tmp_path / "best.pt")
    save_checkpoint(tmp_path / "best.pt", contents | {"class_names": list("abcd")})
    with pytest.raises(InputError, match=r"best\.pt: weights of another architecture or class count.*box_"):
        load_checkpoint(tmp_path / "best.pt")


def test_another_architecture_is_named(contents: dict[str, Any], tmp_path: Path) -> None:
    contents["model_options"]["depth"] = 34
    save_checkpoint(tmp_path / "best.pt", contents)
    with pytest.raises(InputError, match=r"missing.*and \d+ more"):
        build_model(load_checkpoint(tmp_path / "best.pt"), tmp_path / "best.pt")


def test_files_that_are_no_checkpoint(contents: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(InputError, match="not a checkpoint that can be read"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="not a checkpoint that can be read"):
        load_checkpoint(path)
    save_checkpoint(path, contents)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not a checkpoint that can be read"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match=r"not a checkpoint of train\.py"):
        load_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"format": "maskrcnn-checkpoint-1", "model": Bomb()}, tmp_path / "best.pt")
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "best.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_folder_that_cannot_be_written_is_named(contents: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/best\.pt: cannot be written"):
        save_checkpoint(tmp_path / "file" / "best.pt", contents)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_keeps_the_earlier_file(contents: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**contents, "step": 1})
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"last\.pt: cannot be written: No space left on device"):
        save_checkpoint(path, {**contents, "step": 2})
    assert load_checkpoint(path)["step"] == 1


@pytest.mark.slow
def test_kill_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    script = textwrap.dedent(f"""
        import torch
        from pathlib import Path
        from maskrcnn.checkpoint import save_checkpoint
        step = 0
        while True:
            step += 1
            contents = {{"step": step, "w": torch.full((4_000_000,), float(step))}}
            save_checkpoint(Path({str(path)!r}), contents)
    """)
    for delay in (0.03, 0.07, 0.11):
        process = subprocess.Popen([sys.executable, "-c", script])
        path.unlink(missing_ok=True)
        while not path.exists():
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(delay)
        process.kill()
        process.wait()
        contents = read_torch(path)
        assert (contents["w"] == contents["step"]).all()


def test_a_packed_checkpoint_is_half_as_large_and_loads_alike(contents: dict[str, Any], tmp_path: Path) -> None:
    contents["config"] = {
        "out": "/home/me/runs/x",
        "seed": 3,
        "data_options": {"data": ["/home/me/cells"], "crop": 64},
    }
    save_checkpoint(tmp_path / "best.pt", contents | {"optimizer": {"large": 1}})
    pack_checkpoint(load_checkpoint(tmp_path / "best.pt"), tmp_path / "cells.safetensors")
    assert (tmp_path / "cells.safetensors").stat().st_size < 0.55 * (tmp_path / "best.pt").stat().st_size
    packed = load_checkpoint(tmp_path / "cells.safetensors")
    assert "optimizer" not in packed
    assert packed["config"] == {"out": None, "seed": 3, "data_options": {"data": ["cells"], "crop": 64}}
    assert b"/home/me" not in (tmp_path / "cells.safetensors").read_bytes()
    assert (packed["percentiles"], packed["class_names"], packed["diameter"]) == ([0.1, 99.9], ["a", "b"], 30.0)
    model = build_model(packed, tmp_path / "cells.safetensors")
    for key, value in model.state_dict().items():
        expected = contents["model"][key]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected.bfloat16().float() if expected.is_floating_point() else expected), key
    predictor = maskrcnn.load(tmp_path / "cells.safetensors", device="cpu")
    assert predictor.percentiles == (0.1, 99.9)
    assert predictor.diameter == 30


def test_foreign_and_damaged_safetensors(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match=r"foreign\.safetensors: not a checkpoint of train\.py"):
        load_checkpoint(tmp_path / "foreign.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "foreign.safetensors").read_bytes()[:20])
    with pytest.raises(InputError, match=r"damaged\.safetensors: not a checkpoint that can be read"):
        load_checkpoint(tmp_path / "damaged.safetensors")


def test_models_of_the_package_go_by_name(
    contents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_checkpoint(contents | {"percentiles": None}, tmp_path / "blobs.safetensors")
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "__init__.py"))
    assert pretrained.names() == ["blobs"]
    assert maskrcnn.load("blobs", device="cpu").class_names == ("a", "b")
    with pytest.raises(InputError, match="spots: no such checkpoint; models by name: blobs"):
        maskrcnn.load("spots")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blobs").mkdir()  # a folder of data, say
    assert maskrcnn.load("blobs", device="cpu").class_names == ("a", "b")
    (tmp_path / "blobs").rmdir()
    (tmp_path / "blobs").write_text("a file of that name comes first")
    with pytest.raises(InputError, match="blobs: not a checkpoint"):
        maskrcnn.load("blobs")


def test_versions_are_recorded(contents: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", contents)
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["versions"]["maskrcnn"] == maskrcnn.__version__
    assert best["versions"]["torch"] == torch.__version__
    pack_checkpoint(best, tmp_path / "best.safetensors")
    assert load_checkpoint(tmp_path / "best.safetensors")["versions"] == best["versions"]


def test_only_last_pt_resumes(contents: dict[str, Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", contents)
    expected = r"best\.pt: a checkpoint without optimizer, epoch, step_in_epoch, best; .*its folder or its last\.pt"
    with pytest.raises(InputError, match=expected):
        load_checkpoint(tmp_path / "best.pt", to_resume=True)
    with pytest.raises(InputError, match=expected):
        train(TrainConfig(resume=tmp_path / "best.pt", device="cpu"))


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_an_optimizer_goes_on_or_is_refused(tmp_path: Path, kind: Literal["adam", "adamw", "sgd"]) -> None:
    """PyTorch's fused Adam crashes the process where its moments have other shapes than the weights."""

    def start() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, build_optimizer(layer, OptimOptions(optimizer=kind, lr=0.1))

    def step(layer: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    (layer, optimizer), (other, resumed) = start(), start()
    load_optimizer_state(resumed, optimizer.state_dict(), tmp_path)  # nothing gathered yet
    step(layer, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(layer.state_dict())
    load_optimizer_state(resumed, copy.deepcopy(state), tmp_path)
    step(layer, optimizer)
    step(other, resumed)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))
    for index in (0, 1):
        for name in state["state"][index]:
            for odd in (None, 1.0, torch.ones(7), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, device="meta")):
                damaged = copy.deepcopy(state)
                damaged["state"][index][name] = odd
                with pytest.raises(InputError, match="the optimizer's state is that of other weights"):
                    load_optimizer_state(resumed, damaged, tmp_path)
    for damaged in ({}, {"state": None}, {"state": {5: state["state"][0]}}, {"state": {0: {}}}, {"state": {"0": 1}}):
        with pytest.raises(InputError, match="the optimizer's state is that of other weights"):
            load_optimizer_state(resumed, damaged, tmp_path)


def test_checkpoints_without_a_checksum_load(contents: dict[str, Any], tmp_path: Path) -> None:
    """Packed ones written before there was one."""
    state = {key: value.bfloat16().contiguous() for key, value in contents["model"].items()}
    described = {key: value for key, value in contents.items() if key != "model"}
    metadata = {"format": "maskrcnn-checkpoint-1", "description": json.dumps(described)}
    save_file(state, tmp_path / "old.safetensors", metadata)
    path = tmp_path / "old.safetensors"
    assert build_model(load_checkpoint(path), path).aligned is False


NONSENSE = (
    None,
    -1,
    0,
    10**9,
    10**400,
    2.5,
    math.nan,
    math.inf,
    "x",
    "",
    [],
    [None],
    {},
    {"x": 1},
    True,
    torch.ones(2),
)


def _works(path: Path) -> None:
    """All that commands do with a checkpoint before they come to pictures; raises InputError at most."""
    predictor = maskrcnn.load(path, device="cpu", tile=64)
    predictor(np.zeros((40, 40, 3), np.uint8), diameter=predictor.diameter)
    found = load_checkpoint(path)
    TrainConfig.from_dict(found["config"]).check()
    adopt_start(TrainConfig(from_=str(path)))
    pack_checkpoint(found, path.with_suffix(".safetensors"))
    load_checkpoint(path.with_suffix(".safetensors"))


def test_absurd_entries_are_refused_or_work(
    contents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path, rng = tmp_path / "odd.pt", random.Random(0)
    save_checkpoint(path, contents)
    _works(path)
    refused = tried = 0
    places: list[tuple[str, ...]] = [(key,) for key in contents]  # tests/test_options.py has what is in "config"
    places += [(key, name) for key in ("model_options", "thresholds") for name in contents[key]]
    for place in places:
        for value in (*rng.sample(NONSENSE, 5), "delete", "add"):
            odd = copy.deepcopy(contents)
            parent = functools.reduce(dict.__getitem__, place[:-1], odd)
            if isinstance(value, str) and value == "delete":
                del parent[place[-1]]
            elif isinstance(value, str) and value == "add":
                parent[f"{place[-1]}_of_old"] = 1
            else:
                parent[place[-1]] = value
            torch.save({"format": "maskrcnn-checkpoint-1", **odd}, path)
            tried += 1
            try:
                _works(path)
            except InputError as error:
                refused += 1
                if "\n" in str(error):
                    raise AssertionError(f"{place}: {value}") from error
    assert tried > 100
    assert refused > tried / 2


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_damaged_files_are_refused_or_whole(contents: dict[str, Any], tmp_path: Path, name: str) -> None:
    """A flipped bit anywhere, a lost end, zeros in the middle: never other weights without a word."""
    path = tmp_path / name
    if name == "best.pt":
        save_checkpoint(path, contents)
    else:
        pack_checkpoint(contents, path)
    whole, weights = path.read_bytes(), load_checkpoint(path)["model"]
    rng = random.Random(0)
    refused = 0
    for number in range(200):
        damaged = bytearray(whole)
        if number % 10 == 0:
            del damaged[rng.randrange(len(whole)) :]
        elif number % 10 == 1:
            start = rng.randrange(len(whole))
            damaged[start : start + 512] = bytes(len(damaged[start : start + 512]))
        else:  # half of the bits in the first and last 20 kB, where the formats have their tables
            ends = rng.random() < 0.5
            position = (
                rng.choice([rng.randrange(20_000), -1 - rng.randrange(20_000)]) if ends else rng.randrange(len(whole))
            )
            damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except InputError:
            refused += 1
            continue
        assert found["model"].keys() == weights.keys()
        assert all(torch.equal(found["model"][key], weights[key]) for key in weights), number
        build_model(found, path)
    assert refused > 100
