"""Tables, compared with measures of full-size masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.measure import perimeter

from maskrcnn.export.table import COLUMNS, write_table
from tests.export.cells import NAMES, SIDE, crowd, detections_of, disc, masks_of, picture_of, read_table, reader_of


def test_measures_are_those_of_the_full_masks(tmp_path: Path) -> None:
    picture = picture_of(crowd().size)
    write_table(tmp_path / "a.csv", crowd(), NAMES, reader_of(picture))
    rows = read_table(tmp_path / "a.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["id"]) for row in rows] == list(range(1, 61))
    for index, (row, mask) in enumerate(zip(rows, masks_of(crowd()), strict=True)):
        assert (int(row["class"]), row["class_name"]) == (index % 3 + 1, NAMES[index % 3])
        assert float(row["score"]) == pytest.approx(float(crowd().scores[index]), abs=1e-6)
        assert int(row["area"]) == mask.sum()
        if not mask.any():
            assert index == 7
            assert {row[name] for name in COLUMNS[4:] if name != "area"} == {""}
            continue
        y, x = np.nonzero(mask)
        assert [int(row[name]) for name in ("x1", "y1", "x2", "y2")] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        small, large = np.linalg.eigvalsh(np.cov([y, x], bias=True))
        expected = {
            "centroid_x": (x + 0.5).mean(),
            "centroid_y": (y + 0.5).mean(),
            "perimeter": perimeter(mask),
            "eccentricity": np.sqrt(1 - small / large),
            "mean_intensity": picture[mask].mean(),
        }
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, abs=1e-3), name


def test_a_rectangle_and_a_pixel_in_numbers(tmp_path: Path) -> None:
    cells = detections_of([np.ones((3, 5), bool), np.ones((1, 1), bool)], [(10, 20), (4, 3)], [0.9, 0.8], (60, 70))
    picture = np.zeros((60, 70, 3), np.uint8)
    picture[10:13, 20:25] = (30, 60, 90)
    write_table(tmp_path / "a.csv", cells, NAMES, reader_of(picture))
    rectangle, pixel = read_table(tmp_path / "a.csv")
    numbers = {"centroid_x": 22.5, "centroid_y": 11.5, "area": 15, "x1": 20, "y1": 10, "x2": 25, "y2": 13}
    numbers |= {"perimeter": 2 * (3 - 1) + 2 * (5 - 1), "eccentricity": round((2 / 3) ** 0.5, 4), "mean_intensity": 60}
    assert {name: float(rectangle[name]) for name in numbers} == numbers  # variances (3² - 1) / 12 and (5² - 1) / 12
    numbers = {"centroid_x": 3.5, "centroid_y": 4.5, "area": 1, "x1": 3, "y1": 4, "x2": 4, "y2": 5, "eccentricity": 0}
    assert {name: float(pixel[name]) for name in numbers} == numbers


def test_the_picture_is_read_once_a_block(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = (1500, 2500)
    corners = [(int(y), int(x)) for y, x in rng.integers(0, [1450, 2450], (200, 2))]
    cells = detections_of([disc(6)] * 200, corners, [0.5] * 200, size)
    picture = np.broadcast_to(np.arange(2500)[None, :, None] // 10, (*size, 3)).astype(np.uint8)
    calls: list[tuple[int, int, int, int]] = []
    write_table(tmp_path / "a.csv", cells, NAMES, reader_of(picture, calls))
    assert len(calls) == 6
    assert max(max(call[2:]) for call in calls) <= 1024 + SIDE
    for row, mask_left in zip(read_table(tmp_path / "a.csv"), corners, strict=True):
        assert float(row["mean_intensity"]) == pytest.approx((mask_left[1] + 20) / 10 - 0.45, abs=0.6)
    with pytest.raises(ValueError, match=r"read_region: returned an array of shape \(1, 2, 3\)"):
        write_table(tmp_path / "a.csv", cells, NAMES, lambda *_: np.zeros((1, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+1", "'+1"),
        ("-1+1|cmd", "'-1+1|cmd"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\t=1", r"\t=1"),
        ("\uff1d1", "'\uff1d1"),
        ("a;=1,=2\n=3", r"a;=1,=2\n=3"),
        ("a-b", "a-b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_names_are_no_formulas(tmp_path: Path, name: str, written: str) -> None:
    """Every text is in quotes, so that a ``;`` begins no other cell, and no cell begins as a formula does."""
    cells = detections_of([disc(9)], [(4, 3)], [0.8], (60, 70))
    write_table(tmp_path / "a.csv", cells, [name, "b", "c"], reader_of(np.zeros((60, 70, 3), np.uint8)))
    (row,) = read_table(tmp_path / "a.csv")
    assert row["class_name"] == written
    assert float(row["score"]) == pytest.approx(0.8)
    (_, line) = (tmp_path / "a.csv").read_bytes().decode().splitlines()
    quoted = written.replace('"', '""')
    assert f',"{quoted}",' in line
