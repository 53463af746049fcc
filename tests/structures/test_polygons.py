"""Outlines along the edges of pixels, compared with masks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage
from shapely import Polygon
from skimage.draw import polygon2mask

from maskrcnn.structures.polygons import Ring, polygons
from tests.export.cells import SIDE, shapes

Masks = dict[str, np.ndarray]


def unit_edges(ring: Ring) -> list[tuple[int, int, int, int]]:
    """The pixels' edges along a ring, each as the two points of the grid, the lower first."""
    edges = []
    for (x, y), (next_x, next_y) in pairwise(ring.tolist()):
        steps = max(abs(next_x - x), abs(next_y - y))
        dx, dy = (next_x - x) // steps, (next_y - y) // steps
        for i in range(steps):
            a, b = (x + i * dx, y + i * dy), (x + (i + 1) * dx, y + (i + 1) * dy)
            edges.append((*min(a, b), *max(a, b)))
    return edges


def rasterise(rings: list[Ring], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centres lie in the first ring and in no other, by scikit-image's test of points in polygons."""
    outline, *holes = (polygon2mask(size, ring[:, ::-1] - 0.5) for ring in rings)
    for hole in holes:
        assert outline[hole].all(), "a hole outside of the outline"
        outline = outline & ~hole
    return outline


def cells() -> Masks:
    rng = np.random.default_rng(1)
    return {**shapes(), **{f"noise {number}": rng.random((6, 5)) < 0.6 for number in range(40)}}


def whole(masks: Masks, top: int = 7, left: int = 11) -> list[np.ndarray]:
    """The masks in pictures that are larger."""
    pictures = np.zeros((len(masks), SIDE + 9, SIDE + 13), bool)
    for picture, mask in zip(pictures, masks.values(), strict=True):
        picture[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return list(pictures)


def encoded(pictures: list[np.ndarray]) -> list[dict]:
    return [coco_mask.encode(np.asfortranarray(picture.astype(np.uint8))) for picture in pictures]


def test_outlines_are_the_edges_of_the_pixels() -> None:
    pictures = whole(cells())
    for name, full, parts in zip(cells(), pictures, polygons(encoded(pictures)), strict=True):
        drawn = [rasterise(rings, full.shape) for rings in parts]
        np.testing.assert_array_equal(np.sum(drawn, axis=0), full, name)  # each pixel in one polygon
        assert len(parts) == ndimage.label(full)[1], name
        assert all(Polygon(outline, holes).is_valid for outline, *holes in parts), name
        for rings in parts:
            for place, ring in enumerate(rings):
                assert ring[0].tolist() == ring[-1].tolist(), name
                assert len(set(map(tuple, ring.tolist()))) == len(ring) - 1 >= 4, name
                x, y = ring.T
                area = (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2
                assert (area > 0) == (place == 0), name
        padded = np.pad(full, 1)
        down = np.argwhere(padded[:, 1:] != padded[:, :-1])  # between the pixels x and x + 1; x = -1 is padding
        across = np.argwhere(padded[1:] != padded[:-1])
        expected = [(x, y - 1, x, y) for y, x in down.tolist()] + [(x - 1, y, x, y) for y, x in across.tolist()]
        assert sorted(edge for rings in parts for ring in rings for edge in unit_edges(ring)) == sorted(expected), name


def test_many_cells_at_once_are_those_one_by_one() -> None:
    rles = encoded(whole(cells()))
    for together, rle in zip(polygons(rles), rles, strict=True):
        (alone,) = polygons([rle])
        assert [[ring.tolist() for ring in part] for part in together] == [[r.tolist() for r in part] for part in alone]
    assert polygons([]) == []


def test_no_more_points_than_corners() -> None:
    (((ring,),),) = polygons(encoded([np.pad(np.ones((3, 7), bool), 4)]))
    assert len(ring) == 5


def test_cells_at_the_borders_of_the_picture() -> None:
    full = np.zeros((5, 4), bool)
    full[0], full[-1] = True, True
    top, bottom = polygons(encoded([full]))[0]
    assert (Polygon(top[0]).bounds, Polygon(bottom[0]).bounds) == ((0, 0, 4, 1), (0, 4, 4, 5))
    (((ring,),),) = polygons(encoded([np.ones((5, 4), bool)]))  # one run over all columns
    assert Polygon(ring).bounds == (0, 0, 4, 5)


def test_a_pixel_is_a_square_and_no_pixels_are_no_polygon() -> None:
    one = np.zeros((9, 9), bool)
    one[3, 5] = True
    ((ring,),), none = polygons(encoded([one, np.zeros((9, 9), bool)]))
    *corners, last = ring.tolist()
    assert last == corners[0]
    start = corners.index([5, 3])
    assert corners[start:] + corners[:start] == [[5, 3], [6, 3], [6, 4], [5, 4]]
    assert none == []
