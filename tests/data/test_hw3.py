"""The HW3 layout: real folders, folders as they come, and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskrcnn.data.hw3 import Hw3Folder
from maskrcnn.data.id_mapping import read_test_release
from maskrcnn.data.synthetic import write_dataset
from maskrcnn.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures: ``a`` of classes 1 and 3, ``b`` of class 2 in float64 with gaps, ``c`` without cells."""
    image = np.full((20, 30, 3), 90, np.uint8)
    plane = np.zeros((20, 30))
    plane[2:5, 3:9], plane[10:12, 20:25] = 7, 201
    for name, classes in (("a", (1, 3)), ("b", (2,)), ("c", ())):
        (tmp_path / "train" / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "train" / name / "image.tif", image, photometric="rgb")
        for k in classes:
            tifffile.imwrite(tmp_path / "train" / name / f"class{k}.tif", plane)
    return tmp_path


def test_reads_what_is_there(folder: Path) -> None:
    for root in (folder, folder / "train"):
        data = Hw3Folder(root)
        assert data.names == ["a", "b", "c"]
        assert data.num_classes == 3
        assert data.class_counts().tolist() == [[2, 0, 2], [0, 2, 0], [0, 0, 0]]
    sample = data[1]
    assert sample.labels.ids.tolist() == [7, 201]
    assert sample.labels.classes.tolist() == [2, 2]
    assert sample.labels.boxes.tolist() == [[3, 2, 9, 5], [20, 10, 25, 12]]
    assert len(data[2].labels) == 0
    assert data[2].size == (20, 30)


def test_a_subset_keeps_the_ids_of_all(folder: Path) -> None:
    part = Hw3Folder(folder).subset([2, 0])
    assert part.names == ["c", "a"]
    assert part.image_ids == [3, 1]


def test_the_real_sample(shared_data: Path) -> None:
    data = Hw3Folder(shared_data / "hw3_sample", num_classes=4)
    assert data.class_counts().sum(0).tolist() == [2, 159, 0, 0]
    sample = data[0]
    assert len(sample.labels) == 161
    assert sample.image.float().std() > 10
    mapping = json.loads((shared_data / "hw3_sample" / "test_image_name_to_ids.json").read_text())
    assert len(mapping) == 101


def test_the_real_set_counts_as_its_description_says(shared_data: Path) -> None:
    data = Hw3Folder(shared_data / "dsb2018")
    counts = data.class_counts()
    assert len(data) == 564
    assert counts.sum(0).tolist() == [20478, 2208, 1596, 1071]
    assert (counts > 0).sum(0).tolist() == [460, 59, 32, 13]
    assert len(read_test_release(shared_data / "dsb2018")) == 100


def _remove_image(folder: Path) -> None:
    (folder / "train" / "b" / "image.tif").unlink()


def _foreign_class_file(folder: Path) -> None:
    (folder / "train" / "b" / "class2.tif").rename(folder / "train" / "b" / "klass2.tif")


def _class_0(folder: Path) -> None:
    (folder / "train" / "b" / "class2.tif").rename(folder / "train" / "b" / "class0.tif")


def _no_folders(folder: Path) -> None:
    (folder / "train").rename(folder / "elsewhere")
    (folder / "train").mkdir()


def _no_class_files(folder: Path) -> None:
    for path in folder.glob("train/*/class*.tif"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_image, r"train/b: no image\.tif"),
        (_foreign_class_file, r"klass2\.tif: not a class file"),
        (_class_0, r"class0\.tif: not a class file"),
        (_no_folders, r"train: no folder with an image\.tif found"),
        (_no_class_files, r"no class1\.tif, class2\.tif"),
    ],
)
def test_folders_that_are_not_whole(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        Hw3Folder(folder)


def _labels_of(folder: Path, name: str, plane: np.ndarray) -> None:
    """Replaces class2.tif of picture b, as its file says it is written."""
    (folder / "train" / "b" / "class2.tif").unlink()
    path = folder / "train" / "b" / name
    if path.suffix.lower() == ".png":
        Image.fromarray(plane).save(path)
    else:
        tifffile.imwrite(path, plane)


@pytest.mark.parametrize("name", ["class2.TIF", "Class2.tiff", "class2.png", "CLASS2.PNG"])
def test_label_files_by_any_spelling(folder: Path, name: str) -> None:
    plane = np.zeros((20, 30), np.uint16)
    plane[2:5, 3:9], plane[10:12, 20:25] = 7, 40000
    _labels_of(folder, name, plane)
    assert Hw3Folder(folder)[1].labels.ids.tolist() == [7, 40000]


@pytest.mark.parametrize(
    "name", ["class2.jpg", "class2.npy", "class_2.png", "class02.png", "class1000.tif", "klass2.TIF", "mask.tif"]
)
def test_what_looks_like_labels_and_is_not_read_is_named(folder: Path, name: str) -> None:
    (folder / "train" / "b" / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{name}: not a class file"):
        Hw3Folder(folder)


def test_two_files_of_one_class(folder: Path) -> None:
    (folder / "train" / "b" / "class2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"class2\.tif: class 2 has another file, class2\.png"):
        Hw3Folder(folder)


def test_hidden_files_and_those_beside_pictures_are_left_alone(folder: Path) -> None:
    for name in (
        *("._class1.tif", "._image.tif", ".DS_Store", "Thumbs.db", "image.tif.aux.xml", "class1.tif:Zone.Identifier"),
        *("class1.tif.bak", "image.bak", "preview.png", "classes.png", "class1.roi", "notes.txt"),
    ):
        (folder / "train" / "a" / name).write_bytes(b"")
    for name in (".hidden", "__MACOSX", "@eaDir"):
        (folder / "train" / name).mkdir()
    assert Hw3Folder(folder).class_counts().tolist() == [[2, 0, 2], [0, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["class2.tif", "class2.png"])
def test_a_mask_of_all_cells_is_named_once(
    folder: Path, capsys: pytest.CaptureFixture[str], dtype: type, name: str
) -> None:
    plane = np.zeros((20, 30), dtype)
    plane[2:5, 3:9] = plane[10:12, 20:25] = plane[15:17, 2:4] = 255
    _labels_of(folder, name, plane)
    data = Hw3Folder(folder)
    assert data.class_counts().sum(0).tolist() == [2, 1, 2]
    data.subset([1]).read_labels(0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {folder}/train/b/{name}: holds one value, {int(plane.max())}, in 3 pieces, and")
    assert "skimage.measure.label" in line


@pytest.mark.parametrize(("value", "pieces"), [(2, 2), (128, 3)])
def test_a_mask_of_another_value(folder: Path, capsys: pytest.CaptureFixture[str], value: int, pieces: int) -> None:
    """The class's own number, or any in three pieces."""
    plane = np.zeros((20, 30), np.uint8)
    plane[2:5, 3 : 9 * pieces : 9] = plane[2:5, 4 : 9 * pieces : 9] = value
    _labels_of(folder, "class2.tif", plane)
    Hw3Folder(folder).class_counts()
    assert f"class2.tif: holds one value, {value}, in {pieces} pieces" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "second"), [(255, 0), (7, 7), (255, 254)])
def test_labels_are_not_taken_for_masks(
    folder: Path, capsys: pytest.CaptureFixture[str], value: int, second: int
) -> None:
    plane = np.zeros((20, 30), np.uint8)
    plane[2:5, 3:9], plane[10:12, 20:25] = value, second
    _labels_of(folder, "class2.png", plane)
    Hw3Folder(folder).class_counts()
    assert capsys.readouterr().err == ""


def test_more_classes_than_asked_for(folder: Path) -> None:
    with pytest.raises(InputError, match=r"class3\.tif: class 3, but there are 2 classes"):
        Hw3Folder(folder, num_classes=2)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        Hw3Folder(tmp_path / "nowhere")


def test_a_mask_of_another_size(folder: Path) -> None:
    tifffile.imwrite(folder / "train" / "a" / "class1.tif", np.zeros((20, 31), np.uint8))
    with pytest.raises(InputError, match=r"a/class1\.tif: mask of 20x31 pixels, expected 20x30"):
        Hw3Folder(folder).class_counts()


def test_the_synthetic_set_is_one_of_these_folders(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", train=6, test=2, size=128, seed=3)
    data = Hw3Folder(tmp_path / "a")
    counts = data.class_counts()
    assert data.num_classes == 4
    assert (counts.sum(0) > 0).all()
    assert counts[:, 0].sum() > 3 * counts[:, 3].sum()  # classes are uneven
    assert [i.image_id for i in read_test_release(tmp_path / "a")] == [1, 2]
    touching = data[0].labels.planes.max(dim=0).values
    neighbours = (touching[:, 1:] != touching[:, :-1]) & (touching[:, 1:] > 0) & (touching[:, :-1] > 0)
    assert neighbours.any()
    write_dataset(tmp_path / "b", train=6, test=2, size=128, seed=3)
    write_dataset(tmp_path / "c", train=6, test=2, size=128, seed=4)
    same, other = Hw3Folder(tmp_path / "b")[0].image, Hw3Folder(tmp_path / "c")[0].image
    assert np.array_equal(data[0].image, same)
    assert not np.array_equal(data[0].image, other)
    with pytest.raises(InputError, match="not empty"):
        write_dataset(tmp_path / "a")
