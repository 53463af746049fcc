"""Checkpoints are whole or not there; foreign and damaged ones are refused in one line."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import maskrcnn
from maskrcnn import pretrained
from maskrcnn.checkpoint import build_model, load_checkpoint, pack_checkpoint, save_checkpoint
from maskrcnn.errors import InputError
from maskrcnn.model import mask_rcnn_resnet_fpn


@pytest.fixture
def contents() -> dict:
    options = {
        "depth": 18,
        "num_classes": 2,
        "norm": "group",
        "anchor_sizes": ((8.0, 4.0), (16,), (32,), (64,), (128,)),
    }
    return {"model": mask_rcnn_resnet_fpn(**options).state_dict(), "model_options": options}


def test_a_model_comes_back_bit_for_bit(contents: dict, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_checkpoint(path, contents)
    model = build_model(load_checkpoint(path), path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, contents["model"][key]), key
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_the_average_of_the_weights_predicts(contents: dict, tmp_path: Path) -> None:
    """last.pt of a run with --ema holds both."""
    average = {key: value + 1 for key, value in contents["model"].items()}
    save_checkpoint(tmp_path / "last.pt", contents | {"ema": {"model": average, "updates": 3}})
    model = build_model(load_checkpoint(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert all(torch.equal(value, average[key]) for key, value in model.state_dict().items())
    save_checkpoint(tmp_path / "last.pt", contents | {"ema": None})
    model = build_model(load_checkpoint(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert all(torch.equal(value, contents["model"][key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("aligned", [None, False, True])
def test_a_checkpoint_that_does_not_say_is_not_aligned(contents: dict, tmp_path: Path, aligned: bool | None) -> None:
    """It was written before the option was there, and trained with torchvision's mask targets."""
    if aligned is not None:
        contents["model_options"]["aligned"] = aligned
    save_checkpoint(tmp_path / "best.pt", contents)
    model = build_model(load_checkpoint(tmp_path / "best.pt"), tmp_path / "best.pt")
    expected = bool(aligned)
    assert (model.aligned, model.box_head.pool.aligned, model.mask_head.pool.aligned) == (expected,) * 3


def test_another_class_count_is_named(contents: dict, tmp_path: Path) -> None:
    contents["model_options"]["num_classes"] = 4
    save_checkpoint(tmp_path / "best.pt", contents)
    with pytest.raises(InputError, match=r"best\.pt: weights of another architecture or class count.*box_"):
        build_model(load_checkpoint(tmp_path / "best.pt"), tmp_path / "best.pt")


def test_another_architecture_is_named(contents: dict, tmp_path: Path) -> None:
    contents["model_options"]["depth"] = 34
    save_checkpoint(tmp_path / "best.pt", contents)
    with pytest.raises(InputError, match=r"missing.*and \d+ more"):
        build_model(load_checkpoint(tmp_path / "best.pt"), tmp_path / "best.pt")


def test_files_that_are_no_checkpoint(contents: dict, tmp_path: Path) -> None:
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


def test_a_folder_that_cannot_be_written_is_named(contents: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"):
        save_checkpoint(tmp_path / "missing" / "best.pt", contents)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_keeps_the_earlier_file(contents: dict, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {**contents, "step": 1})
    (tmp_path / "last.pt.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"last\.pt: the checkpoint could not be written"):
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
            contents = {{"step": step, "model": {{"w": torch.full((4_000_000,), float(step))}}}}
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
        contents = load_checkpoint(path)
        assert (contents["model"]["w"] == contents["step"]).all()


def test_a_packed_checkpoint_is_half_as_large_and_loads_alike(contents: dict, tmp_path: Path) -> None:
    described = {"percentiles": (0.1, 99.9), "class_names": ["a", "b"], "diameter": 30.0, "optimizer": {"large": 1}}
    described["config"] = {
        "out": "/home/me/runs/x",
        "seed": 3,
        "data_options": {"data": ["/home/me/cells"], "crop": 64},
    }
    save_checkpoint(tmp_path / "best.pt", contents | described)
    pack_checkpoint(load_checkpoint(tmp_path / "best.pt"), tmp_path / "cells.safetensors")
    assert (tmp_path / "cells.safetensors").stat().st_size < 0.51 * (tmp_path / "best.pt").stat().st_size
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


def test_models_of_the_package_go_by_name(contents: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"percentiles": None, "class_names": ["a", "b"]}
    pack_checkpoint(contents | described, tmp_path / "blobs.safetensors")
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
