"""The report's page: what is in the file, and what a reader sees of it in Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskrcnn.errors import InputError
from maskrcnn.evaluation.coco_ap import coco_metrics
from maskrcnn.evaluation.dense import dense_metrics
from maskrcnn.report.outlines import outline_paths, simplify
from maskrcnn.report.write import JPEG_BYTES, ReportPicture, write_report

NAMES = ["round", "l<o>ng & \"thin\" 'one'"]
SIZE = (96, 128)


def _cell(y: int, x: int, height: int, width: int, category: int = 1, score: float = 0.9) -> dict[str, Any]:
    """An ellipse in a window of the picture, as a COCO result."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    mask = ((rows - y - height / 2) / height) ** 2 + ((columns - x - width / 2) / width) ** 2 <= 0.25
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "image_id": 1,
        "category_id": category,
        "bbox": [float(v) for v in coco_mask.toBbox(rle)],
        "score": score,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def _truth(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**cell, "id": number, "iscrowd": 0, "area": float(coco_mask.area(cell["segmentation"]))}
        for number, cell in enumerate(cells, start=1)
    ]


CELLS = [
    _cell(10, 10, 20, 24),
    _cell(50, 60, 16, 40, category=2, score=0.8),
    _cell(60, 10, 22, 18, score=0.62),
    _cell(12, 80, 15, 15, category=2, score=0.3),
]


def _thumbnail() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 90, (*SIZE, 3), dtype=np.uint8)


def _pictures(with_truth: bool = True) -> Iterator[ReportPicture]:
    """A good picture, a worse one, one without any cell, and one of unknown truth."""

    def truth(cells: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        return _truth(cells) if with_truth else None

    yield ReportPicture('good <img src="x">&.tif', SIZE, CELLS, _thumbnail(), truth(CELLS[:3]))
    yield ReportPicture("worse.tif", SIZE, CELLS[:2], Image.fromarray(_thumbnail()), truth([CELLS[0], CELLS[2]]))
    yield ReportPicture("without cells.tif", SIZE, [], _thumbnail(), truth([]))
    yield ReportPicture("unknown.tif", SIZE, CELLS[1:2], _thumbnail())


def _data(page: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report's data and the pictures', in the page's order."""
    scripts = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    *pictures, report = map(json.loads, scripts)
    return report, pictures


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "report.html", _pictures(), NAMES, title="A & <b>", subtitle="</script>")
    page = (tmp_path / "new" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [source[:5] for source in sources] == ["data:"] * 5
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_names_are_text(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", _pictures(), NAMES, title="A & <b>", subtitle="</script>")
    page = (tmp_path / "report.html").read_text()
    assert "<h1>A &amp; &lt;b&gt;</h1>" in page
    assert "&lt;/script&gt;" in page
    assert '<img src="x">' not in page
    assert "good &lt;img src=&quot;x&quot;&gt;&amp;.tif" in page
    report, pictures = _data(page)
    assert [c["name"] for c in report["classes"]] == NAMES
    assert 'good <img src="x">&.tif' in {picture["name"] for picture in pictures}


def test_names_need_not_be_unicode(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", [ReportPicture("a\udcff.tif", SIZE, [], _thumbnail())], NAMES)
    assert r"a\udcff.tif" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_worst_picture_comes_first(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", _pictures(), NAMES)
    report, pictures = _data((tmp_path / "report.html").read_text())
    assert [picture["index"] for picture in pictures] == [1, 0, 2, 3]
    assert pictures[0]["score"] == {"value": 1 / 3, "found": 1, "missed": 1, "wrong": 1}
    assert pictures[1]["score"] == {"value": 1.0, "found": 3, "missed": 0, "wrong": 0}
    assert pictures[2]["score"]["value"] is None
    assert pictures[3]["score"] is None
    assert report["scores"]["pictures"] == 3


def test_without_truth_the_order_stays(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", _pictures(with_truth=False), NAMES)
    report, pictures = _data((tmp_path / "report.html").read_text())
    assert [picture["index"] for picture in pictures] == [0, 1, 2, 3]
    assert report["scores"] is None


def test_the_scores_are_those_of_validation(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", _pictures(), NAMES, score_threshold=0.25)
    scores = _data((tmp_path / "report.html").read_text())[0]["scores"]
    images, annotations, results = [], [], []
    for number, picture in enumerate(list(_pictures())[:3], start=1):
        images.append({"id": number, "height": SIZE[0], "width": SIZE[1]})
        annotations += [{**cell, "image_id": number} for cell in picture.truth or ()]
        results += [{**result, "image_id": number} for result in picture.results]
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": k, "name": str(k)} for k in (1, 2)]}
    coco, dense = coco_metrics(truth, results, 1000), dense_metrics(truth, results, 0.25)
    for suffix, of in (("", scores), ("/class1", scores["classes"][0]), ("/class2", scores["classes"][1])):
        assert of["ap"] == coco[f"AP@1000{suffix}"]
        assert of["ap50"] == coco[f"AP50@1000{suffix}"]
        assert of["value"] == dense[f"AP50{suffix}"]
    assert 0 < scores["value"] < 1
    found = [(one["found"], one["missed"], one["wrong"]) for one in (scores, *scores["classes"])]
    assert found == [(4, 1, 2), (3, 1, 0), (1, 0, 2)]


def test_the_gallery_can_be_limited_to_the_worst(tmp_path: Path) -> None:
    """All pictures count, and thumbnails of others are not made."""
    made: list[str] = []

    def picture(name: str, found: int) -> ReportPicture:
        def thumbnail() -> np.ndarray:
            made.append(name)
            return _thumbnail()

        return ReportPicture(name, SIZE, CELLS[:found], thumbnail, _truth(CELLS[:2]))

    write_report(tmp_path / "a.html", [picture("good.tif", 2), picture("bad.tif", 0), picture("half.tif", 1)], NAMES)
    assert made == ["good.tif", "bad.tif", "half.tif"]
    made.clear()
    pictures = [picture("good.tif", 2), picture("bad.tif", 0), picture("half.tif", 1)]
    write_report(tmp_path / "b.html", pictures, NAMES, most=2)
    assert made == ["bad.tif", "half.tif"]
    assert ">good.tif<" not in (tmp_path / "b.html").read_text()
    scores = [re.search(r'"scores":(\{.*?\]\})', (tmp_path / name).read_text()) for name in ("a.html", "b.html")]
    assert scores[0]
    assert scores[1]
    assert scores[0].group(1) == scores[1].group(1)


def test_one_thumbnail_is_held_at_a_time(tmp_path: Path) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Image.Image]] = []

    def pictures() -> Iterator[ReportPicture]:
        for number in range(4):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 1  # the writer still holds the last one
            thumbnail = Image.fromarray(_thumbnail())
            alive.append(weakref.ref(thumbnail))
            yield ReportPicture(f"{number}.tif", SIZE, CELLS, thumbnail)
            del thumbnail

    write_report(tmp_path / "report.html", pictures(), NAMES)
    assert len(alive) == 4


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", [], NAMES)
    report, pictures = _data((tmp_path / "report.html").read_text())
    assert pictures == []
    assert report["scores"] is None


def test_scores_compare_in_the_page_as_in_python(tmp_path: Path) -> None:
    values = [0.5, 0.49999, 0.57, float(np.float32(0.57)), 1.0]
    cells = [_cell(10, 10, 20, 24, score=value) for value in values]
    write_report(tmp_path / "report.html", [ReportPicture("a", SIZE, cells, _thumbnail())], NAMES)
    report, (picture,) = _data((tmp_path / "report.html").read_text())
    for threshold in (0.5, 0.57, 1.0):
        units = round(threshold * report["scoreUnits"])
        assert [score >= units for score in picture["cells"]["scores"]] == [value >= threshold for value in values]


def test_thumbnails_stay_small(tmp_path: Path) -> None:
    """Noise is the worst that JPEG can meet."""
    noise = np.random.default_rng(0).integers(0, 255, (700, 1400, 3), dtype=np.uint8)
    write_report(tmp_path / "report.html", [ReportPicture("noise", (700, 1400), [], noise)], NAMES)
    page = (tmp_path / "report.html").read_text()
    assert max(map(len, re.findall(r"base64,([^\"]*)", page))) <= JPEG_BYTES * 4 / 3 + 4


def test_what_does_not_fit_is_refused_and_earlier_pages_stay(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(ValueError, match="class 3, expected 1 to 2"):
        write_report(path, [ReportPicture("a", SIZE, [_cell(1, 1, 9, 9, category=3)], _thumbnail())], NAMES)
    with pytest.raises(ValueError, match="segmentation of size"):
        write_report(path, [ReportPicture("a", (5, 5), CELLS, _thumbnail())], NAMES)
    assert path.read_text() == "before"
    with pytest.raises(InputError, match="cannot be written"):
        write_report(path / "report.html", [], NAMES)


def _points(path: str) -> list[np.ndarray]:
    """The rings of an SVG path ``M x y l dx dy ... z``, absolute."""
    rings = []
    for ring in path.split("z")[:-1]:
        start, steps = ring.removeprefix("M").split("l")
        numbers = [int(number) for number in re.findall(r"-?\d+", steps)]
        first = np.array([int(number) for number in start.split()])
        rings.append(np.concatenate([[first], first + np.cumsum(np.reshape(numbers, (-1, 2)), axis=0)]))
    return rings


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def test_outlines_enclose_the_cells() -> None:
    paths, areas = outline_paths([cell["segmentation"] for cell in CELLS], 4.0)
    for cell, path, area in zip(CELLS, paths, areas, strict=True):
        assert area == coco_mask.area(cell["segmentation"])
        (ring,) = _points(path)
        assert abs(_area(ring)) / 16 == pytest.approx(area, rel=0.08)
        x, y, width, height = cell["bbox"]
        assert np.abs(ring.min(0) / 4 - (x, y)).max() <= 0.5
        assert np.abs(ring.max(0) / 4 - (x + width, y + height)).max() <= 0.5
        assert len(path) < 130


def test_holes_turn_the_other_way() -> None:
    mask = np.zeros((20, 20), np.uint8, order="F")
    mask[2:18, 2:18] = 1
    mask[7:12, 7:12] = 0
    (path,), (area,) = outline_paths([coco_mask.encode(mask)], 2.0)
    outer, inner = (_area(ring) for ring in _points(path))
    assert outer * inner < 0
    assert abs(outer + inner) / 4 == pytest.approx(area, rel=0.05)


def test_specks_and_cells_without_pixels() -> None:
    mask = np.zeros((500, 500), np.uint8, order="F")
    empty = coco_mask.encode(mask)
    mask[400, 300] = 1
    paths, areas = outline_paths([coco_mask.encode(mask), empty], 0.1)
    assert areas == [1, 0]
    assert paths[1] == ""
    (ring,) = _points(paths[0])
    assert ring.min(0).tolist() == [30, 40]
    assert ring.max(0).tolist() == [31, 41]


def test_simplified_rings_stay_within_the_tolerance() -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([50 * np.sin(angle), 50 * np.cos(angle)], 1)
    circle[-1] = circle[0]
    square = np.array([(0.0, 0), (0, 5), (0, 10), (5, 10), (10, 10), (10, 0), (0, 0)])
    simple, corners = simplify([circle, square], 1.0)
    assert len(simple) < 25
    assert np.hypot(*((simple[1:] + simple[:-1]) / 2).T).min() > 48.5
    assert corners.tolist() == [[0, 0], [0, 10], [10, 10], [10, 0], [0, 0]]
    assert simplify([], 1.0) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "disable-sync")
    for switch in (*switches, "disable-background-networking", "disable-component-update", "window-size=1280,900"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Any:
    """The report of ``_pictures`` in the browser; afterwards the console must be empty."""
    write_report(tmp_path / "report.html", _pictures(), NAMES)
    browser.get((tmp_path / "report.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def _one(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def _counts(page: Any) -> list[str]:
    return [cell.text for cell in page.find_elements("css selector", "#counts .count")]


def _press(page: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def test_the_page_counts_what_the_pictures_hold(page: Any, tmp_path: Path) -> None:
    sure = [cell for picture in _pictures() for cell in picture.results if cell["score"] >= 0.5]
    by_class = [sum(cell["category_id"] == k for cell in sure) for k in (1, 2)]
    assert _counts(page) == [str(count) for count in (*by_class, len(sure))]
    assert _one(page, "#figure-cells span").text == str(len(sure))
    assert [name.text for name in page.find_elements("css selector", "#counts tbody th")] == NAMES
    assert [total.text for total in page.find_elements("css selector", ".total")] == [
        "2 cells",
        "3 cells",
        "0 cells",
        "1 cell",
    ]
    assert page.save_screenshot(str(tmp_path / "page.png"))
    colors = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colors, axis=0)) > 100


def test_the_slider_filters_counts_and_outlines(page: Any) -> None:
    def rings() -> int:
        paths = page.find_elements("css selector", ".card:nth-child(2) path.cell")
        return sum((path.get_attribute("d") or "").count("M") for path in paths)

    assert rings() == 3
    for value, expected, outlines in (
        ("0.7", ["2", "3", "5"], 2),
        ("0", ["3", "4", "7"], 4),
        ("1", ["0", "0", "0"], 0),
    ):
        page.execute_script(
            "const slider = document.getElementById('score-threshold');"
            "slider.value = arguments[0]; slider.dispatchEvent(new Event('input'));",
            value,
        )
        page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        assert _counts(page) == expected
        assert rings() == outlines


def test_outlines_are_switched_on_and_off(page: Any) -> None:
    def seen(kind: str) -> list[bool]:
        return [path.is_displayed() for path in page.find_elements("css selector", f".card:nth-child(2) .{kind}")]

    assert seen("cell") == seen("truth-cell") == [True, True]
    _one(page, "#toggle-outlines").click()
    assert seen("cell") == [False, False]
    assert seen("truth-cell") == [True, True]
    _press(page, "o")
    assert seen("cell") == [True, True]
    _press(page, "t")
    assert seen("truth-cell") == [False, False]
    _press(page, "2")
    assert seen("cell") == [True, False]
    assert _one(page, "#toggle-classes button:nth-child(2)").get_attribute("aria-pressed") == "false"


def test_a_thumbnail_opens_large(page: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    viewer, stage = _one(page, "#viewer"), _one(page, "#stage")
    assert not viewer.is_displayed()
    _one(page, ".card:nth-child(2) .open").click()
    assert viewer.is_displayed()
    assert _one(page, "#viewer-name").text == 'good <img src="x">&.tif'
    assert page.save_screenshot(str(tmp_path / "viewer.png"))
    picture = np.asarray(Image.open(tmp_path / "viewer.png").convert("RGB"))
    yellow = (np.abs(picture.astype(int) - (240, 228, 66)) < 12).all(-1)
    assert yellow.sum() > 300  # the outlines of class 1
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000

    page.execute_script(
        "const at = new DOMPoint(44, 40).matrixTransform(arguments[0].getScreenCTM());"  # in the middle of CELLS[0]
        "arguments[0].dispatchEvent(new PointerEvent('pointermove', {clientX: at.x, clientY: at.y}))",
        stage,
    )
    area = coco_mask.area(CELLS[0]["segmentation"])
    assert _one(page, "#tip").text == f"round · score 0.90 · {area} pixels"

    whole = stage.get_dom_attribute("viewBox")
    page.execute_script(
        "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -400, clientX: 500, clientY: 400}))", stage
    )
    zoomed = stage.get_dom_attribute("viewBox")
    assert float(zoomed.split()[2]) < float(whole.split()[2])
    ActionChains(page).move_to_element(stage).click_and_hold().move_by_offset(60, 40).release().perform()
    dragged = stage.get_dom_attribute("viewBox")
    assert dragged.split()[2] == zoomed.split()[2]
    assert float(dragged.split()[0]) < float(zoomed.split()[0])
    _press(page, "0")
    assert stage.get_dom_attribute("viewBox") == whole

    _press(page, Keys.ARROW_RIGHT)
    assert _one(page, "#viewer-name").text == "without cells.tif"
    _press(page, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert _one(page, "#viewer-name").text == "worse.tif"
    _press(page, Keys.ESCAPE)
    assert not viewer.is_displayed()


def test_an_empty_report_says_so(browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", [], NAMES)
    browser.get((tmp_path / "report.html").as_uri())
    assert _one(browser, "#no-pictures").is_displayed()
    assert not _one(browser, "#charts").is_displayed()
    assert _counts(browser) == ["0", "0", "0"]
    assert browser.get_log("browser") == []
