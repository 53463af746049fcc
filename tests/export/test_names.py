"""Names of results, of pictures of any name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskrcnn.export.names import LONGEST, file_stem, result_keys
from maskrcnn.files import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zelle µ, 細胞.tif", "Zelle µ, 細胞.tif"),
        ("two\nlines\r\tand a tab", r"two\nlines\r\tand a tab"),
        (os.fsdecode(b"latin \xe9.tif"), r"latin \udce9.tif"),
        ("\x1b[2J\x07bell", r"\x1b[2J\x07bell"),
        ("gnp.\u202etif", r"gnp.\u202etif"),  # shown from right to left: "gnp.fit"
    ],
)
def test_texts_are_shown_on_one_line(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (["image.tif"], ["pictures"]),
        (["../image.tif"], ["above"]),
        (["./image.tif", "b/image.tif"], ["pictures", "b"]),
        (["..tif", "...tif", ".tif"], ["..tif", "...tif", ".tif"]),
        (["a.TIF", "A.png"], ["a.TIF", "A.png"]),
        (["a.tif", "A.tif"], ["a.tif", "A.tif-2"]),
        (["caf\u00e9.tif", "cafe\u0301.png"], ["caf\u00e9.tif", "cafe\u0301.png"]),
    ],
)
def test_keys_are_names_inside_a_folder(
    files: list[str], keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "above" / "pictures"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert [key for (key,) in result_keys([Path(file) for file in files], [[""]] * len(files))] == keys


@pytest.mark.parametrize("letter", ["a", "é", "細", "\udcff"])
def test_long_names_are_cut_and_stay_apart(letter: str) -> None:
    width = len(os.fsencode(letter))
    names = [letter * (250 // width) + end for end in ("", "x", "y")]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == 3
    for name, stem in zip(names, stems, strict=True):
        assert LONGEST - 4 <= len(os.fsencode(stem)) <= LONGEST or letter == "\udcff"
        assert file_stem(stem) == stem
        assert stem == file_stem(name)
    short = letter * (LONGEST // width)
    assert file_stem(short) == short
