"""The training and validation sets of a run, by its options."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import maskrcnn
from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.data.coco import to_coco
from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.split import repeat_factors, train_val_split
from maskrcnn.data.synthetic import write_dataset
from maskrcnn.engine.config import DataOptions, TrainConfig
from maskrcnn.engine.datasets import Datasets, build_datasets
from maskrcnn.engine.resume import run_config
from maskrcnn.engine.start import adopt_start
from maskrcnn.engine.train import train
from maskrcnn.errors import InputError
from tests.conftest import ROOT, tiny_config


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another synthetic set, whose pictures have the names of ``tiny_dataset``'s."""
    root = tmp_path_factory.mktemp("sets") / "other"
    write_dataset(root, train=5, test=0, size=96, seed=1)
    return root


def build(tmp_path: Path, *data: Path, **options: Any) -> Datasets:
    config = TrainConfig(data_options=DataOptions(data=data, **options))
    config.check()
    return build_datasets(config, tmp_path)


def test_one_source_is_split_and_sampled_as_ever(tiny_dataset: Path, tmp_path: Path) -> None:
    whole = Hw3Folder(tiny_dataset)
    counts = whole.class_counts()
    train_indices, val_indices = train_val_split(counts, 0.3, 4)
    built = build(tmp_path, tiny_dataset, val_fraction=0.3, split_seed=4, repeat_threshold=0.9)
    assert built.val.names == [whole.names[i] for i in val_indices]
    assert built.val.image_ids == [whole.image_ids[i] for i in val_indices]
    assert np.array_equal(built.repeat_factors, repeat_factors(counts[train_indices], 0.9))
    assert built.class_names == whole.class_names


def test_two_sources_are_both_split(
    tiny_dataset: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build(tmp_path, tiny_dataset, other, val_fraction=0.4)
    assert sorted(built.train.image_ids + built.val.image_ids) == list(range(1, 16))
    assert built.class_names == ["class1", "class2", "class3", "class4"]
    lines = capsys.readouterr().out.splitlines()
    assert f"{len(built.train)} training and {len(built.val)} validation pictures; cells of class class1: " in lines[0]
    for source, line in zip(("data", "other"), lines[1:], strict=True):
        numbers = [int(number) for number in re.findall(r"\d+", line)]
        expected = []
        for side in (built.train, built.val):
            cells = [len(side.labels(i)) for i in range(len(side)) if side.sources[i] == source]
            expected += [len(cells), sum(cells)]
        assert line.startswith(f"  {source}: ")
        assert numbers == expected
        assert expected[2] >= 1


def test_explicit_validation_pictures(tiny_dataset: Path, other: Path, tmp_path: Path) -> None:
    built = build(tmp_path, tiny_dataset, val=(other,), repeat_threshold=0.9)
    assert built.train.sources == ["data"] * 10
    assert built.val.sources == ["other"] * 5
    assert np.array_equal(built.repeat_factors, repeat_factors(Hw3Folder(tiny_dataset).class_counts(), 0.9))
    assert built.train[0, 5].size == (512, 512)  # a training crop
    assert built.val[0, 5].size == (96, 96)
    merged = build(tmp_path, tiny_dataset, val=(other,), merge_classes="cell")
    assert merged.val.class_names == ["cell"]
    assert merged.val[0].labels.classes.unique().tolist() == [1]


def test_a_folder_and_a_coco_file(tiny_dataset: Path, other: Path, tmp_path: Path) -> None:
    whole = Hw3Folder(other)
    (tmp_path / "c.json").write_text(json.dumps(to_coco(whole)))
    first = Hw3Folder(tiny_dataset).names[0]
    options = {"image_root": other / "train", "merge_classes": "cell", "source_by": f"{first}$"}
    built = build(tmp_path, tiny_dataset, val=(tmp_path / "c.json",), **options)
    assert {source.split("/")[0] for source in built.train.sources} == {"data", first}
    assert {source.split("/")[0] for source in built.val.sources} == {"c"}
    assert np.array_equal(built.val[3].image, whole[3].image)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_not_divided(tiny_dataset: Path, other: Path, tmp_path: Path, seed: int) -> None:
    """Both sets have pictures of the same names; by groups of one name each they are on one side."""
    built = build(tmp_path, tiny_dataset, other, val_fraction=0.3, split_seed=seed, group_by=".*")
    sides = [{name.split("/")[-1] for name in side.names} for side in (built.train, built.val)]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[0] | sides[1]) == 10


def slides(folder: Path, count: int) -> Path:
    """A COCO file of crops in one folder per slide, four of each slide, with one cell each."""
    images, annotations = [], []
    for index in range(4 * count):
        name = f"slide{index // 4}/crop{index % 4}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), index, np.uint8)).save(folder / name)
        images.append({"id": index, "file_name": name, "height": 20, "width": 30})
        cell = {"id": index, "image_id": index, "category_id": 5, "segmentation": [[2, 3, 12, 3, 12, 9, 2, 9]]}
        annotations.append(cell)
    contents = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "cell"}]}
    (folder / "c.json").write_text(json.dumps(contents))
    return folder / "c.json"


@pytest.mark.parametrize("seed", range(3))
def test_crops_of_one_slide_are_on_one_side(tmp_path: Path, seed: int) -> None:
    """By the folder that their names begin with."""
    built = build(tmp_path, slides(tmp_path, 6), val_fraction=0.3, split_seed=seed, group_by="[^/]+/")
    sides = [{name.split("/")[0] for name in side.names} for side in (built.train, built.val)]
    assert sides[0].isdisjoint(sides[1])
    assert (len(built.train), len(built.val)) == (16, 8)
    apart = build(tmp_path, tmp_path / "c.json", val_fraction=0.3, split_seed=seed)
    sides = [{name.split("/")[0] for name in side.names} for side in (apart.train, apart.val)]
    assert sides[0] & sides[1]  # without groups they are not


def test_a_folder_that_was_renamed_keeps_the_split(tiny_dataset: Path, tmp_path: Path) -> None:
    """Several sources are split in the order of their names."""
    for number, picture in enumerate(sorted((tiny_dataset / "train").iterdir())):
        root = tmp_path / "ab"[number % 2] / "train"
        root.mkdir(parents=True, exist_ok=True)
        (root / picture.name).symlink_to(picture)
    before = build(tmp_path, tmp_path / "a", tmp_path / "b", val_fraction=0.4, split_seed=2)
    (tmp_path / "a").rename(tmp_path / "z")
    data = DataOptions(data=(tmp_path / "z", tmp_path / "b"), val_fraction=0.4, split_seed=2)
    split = {"train": before.train.names, "val": before.val.names}
    assert build_datasets(TrainConfig(data_options=data), tmp_path).val.names != before.val.names
    after = build_datasets(TrainConfig(data_options=data), tmp_path, split)
    assert {"train": after.train.names, "val": after.val.names} == split
    assert np.array_equal(after.repeat_factors, before.repeat_factors)


@pytest.mark.parametrize("kind", ["missing", "another size", "another channel"])
@pytest.mark.parametrize("side", ["train", "val"])
def test_pictures_are_looked_at_before_training(tmp_path: Path, kind: str, side: str) -> None:
    files = {name: slides(tmp_path / name, 1) for name in ("train", "val")}
    picture = tmp_path / side / "slide0" / "crop3.png"
    options: dict[str, Any] = {}
    if kind == "missing":
        picture.unlink()
        message = f"{picture}: no such file; --image-root FOLDER says where the pictures lie"
    elif kind == "another size":
        Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(picture)
        message = f"{picture}: 30x20 pixels, but c.json says 20x30"
    else:
        tifffile.imwrite(picture, np.zeros((20, 30), np.uint8))  # a PNG's channels are known once it is decoded
        options["channels"] = (0, 2)
        message = f"--channels: {picture} has the channels 0 to 0, no 2"
    with pytest.raises(InputError, match=re.escape(message)):
        build(tmp_path, files["train"], val=(files["val"],), **options)


def test_names_that_were_written_on_windows(tmp_path: Path) -> None:
    path = slides(tmp_path, 1)
    path.write_text(path.read_text().replace("slide0/", "slide0\\\\"))
    built = build(tmp_path, path, val_fraction=0.25)
    assert all("slide0\\crop" in name for name in built.train.names)
    assert built.train[0].image.shape == (20, 30, 3)


def test_no_cell_to_train_on_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: slides(tmp_path / name, 1) for name in ("full", "empty")}
    boxes_only = re.sub(r"\[\[2, 3.*?\]\]", "[]", files["empty"].read_text())
    files["empty"].write_text(boxes_only)
    with pytest.raises(InputError, match=r"c\.json: no cell in any of the 4 training pictures; expected labels"):
        build(tmp_path, files["empty"], val=(files["full"],))
    assert "4 of 4 annotations skipped: 4 without a segmentation" in capsys.readouterr().err
    build(tmp_path, files["full"], val=(files["empty"],))
    assert "no cell in any validation picture, so there are no scores" in capsys.readouterr().err


def test_a_published_split_in_two_coco_files(tmp_path: Path) -> None:
    first, second = (
        slides(tmp_path / name, count).rename(tmp_path / name / f"{name}.json")
        for name, count in (("train", 2), ("val", 1))
    )
    built = build(tmp_path, first, val=(second,))
    assert (len(built.train), len(built.val)) == (8, 4)
    assert built.train.sources + built.val.sources == ["train"] * 8 + ["val"] * 4
    assert (built.class_names, built.category_ids) == (["cell"], [5])


def test_whole_pictures_at_one_size(tiny_dataset: Path, tmp_path: Path) -> None:
    built = build(tmp_path, tiny_dataset, resize=160)
    whole = built.train[0]
    enlarged = built.train[0, 3]
    assert enlarged.size == (160, 160)
    assert len(enlarged.labels) == len(whole.labels)  # no cell is cut off
    assert enlarged.labels.areas.sum() == pytest.approx(int(whole.labels.areas.sum()) * (160 / 96) ** 2, rel=0.02)
    assert built.val[0, 3].size == (96, 96)


def test_a_run_on_whole_pictures_predicts_at_their_size(tiny_dataset: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_dataset, tmp_path / "run", epochs=1)
    data = dataclasses.replace(config.data_options, resize=64)
    folder = train(dataclasses.replace(config, data_options=data))
    best = load_checkpoint(folder / "best.pt")
    assert (best["resize"], best["diameter"]) == (64, None)
    assert maskrcnn.load(folder / "best.pt", device="cpu").resize == 64
    adopted = adopt_start(TrainConfig(from_=str(folder / "best.pt")))
    assert (adopted.data_options.resize, adopted.data_options.diameter) == (64, "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 100}, "--resize is 100; expected a multiple of 32"),
        ({"resize": 64, "diameter": 12.0}, r"--diameter is 12\.0; expected none with --resize"),
        ({"resize": 64, "scale_min": 0.9}, r"--scale-min is 0\.9; expected none with --resize"),
        ({"resize": 64, "scale_max": 2.0}, r"--scale-max is 2\.0; expected none with --resize"),
        ({"source_by": "("}, r"--source-by is \(; expected a regular expression"),
        ({"group_by": "*"}, r"--group-by is \*; expected a regular expression"),
        ({"merge_classes": ""}, "--merge-classes is ''; expected a name"),
        ({"merge_classes": "cell", "num_classes": 2}, "--num-classes is 2; expected none with --merge-classes"),
        ({"val": (Path("x"),), "group_by": "a"}, "--group-by is a; expected none with --val"),
        ({"val": (Path("no/such/folder"),)}, "no/such/folder: no such folder"),
    ],
)
def test_options_that_do_not_fit(tiny_dataset: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(tmp_path, tiny_dataset, **options)


def test_validation_pictures_alone_are_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--val is .*data; expected --data as well"):
        build(tmp_path, val=(tiny_dataset,))


def test_a_folder_is_given_once(tiny_dataset: Path, tmp_path: Path) -> None:
    message = "train: given twice in --data and --val; expected once"
    with pytest.raises(InputError, match=message):
        build(tmp_path, tiny_dataset, tiny_dataset / "train")
    with pytest.raises(InputError, match=message):
        build(tmp_path, tiny_dataset, val=(tiny_dataset / "train",))


@pytest.mark.parametrize(
    ("saved", "expected"), [("a/b", (Path("a/b"),)), (None, ()), (["a", "b"], (Path("a"), Path("b")))]
)
def test_options_of_earlier_versions_are_read(saved: object, expected: tuple[Path, ...]) -> None:
    values = TrainConfig().to_dict()
    for key in ("val", "merge_classes", "source_by", "group_by"):
        del values["data_options"][key]
    values["data_options"]["data"] = saved
    assert TrainConfig.from_dict(values) == TrainConfig(data_options=DataOptions(data=expected))


def test_a_run_on_two_sources_as_one_class(tiny_dataset: Path, other: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_dataset, tmp_path / "run", epochs=1)
    data = dataclasses.replace(config.data_options, data=(tiny_dataset, other), merge_classes="nucleus")
    folder = train(dataclasses.replace(config, data_options=data))
    best = load_checkpoint(folder / "best.pt")
    assert (best["class_names"], best["category_ids"]) == (["nucleus"], [1])
    assert maskrcnn.load(folder / "best.pt").class_names == ("nucleus",)
    assert train(run_config(folder)) == folder


def test_the_command_line_takes_several_sources(tiny_dataset: Path, tmp_path: Path) -> None:
    options = ["--data", tiny_dataset, tmp_path / "missing", "--val", tmp_path / "v", "--out", tmp_path / "run"]
    command = [sys.executable, "train.py", *map(str, options), "--device", "cpu"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1] == f"error: {tmp_path}/missing: no such folder"
