"""Overlays: what is drawn where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from maskrcnn.export.overlay import draw_overlay
from tests.export.cells import two_cells


def test_overlays_colour_the_cells_and_leave_the_rest() -> None:
    image = torch.full((48, 64, 3), 100, dtype=torch.uint8)
    picture = np.asarray(draw_overlay(image, two_cells(), ["class1", "class2", "class3"], shortest_side=48))
    assert picture.shape[1] == 64
    assert (picture[1, 1] == 100).all()
    inside = picture[14, 8].astype(int)
    assert inside[0] > 100 > inside[2]  # yellow fill over grey
    large = draw_overlay(image, two_cells(0), ["class1"], shortest_side=96)
    assert large.size[0] == 128


def test_the_legend_has_room_for_scores_by_class() -> None:
    """They are one range: nothing is drawn up to the right edge."""
    image = torch.zeros(300, 300, 3, dtype=torch.uint8)
    names = ["class1", "class2", "class3", "class4"]
    picture = np.asarray(draw_overlay(image, replace(two_cells(), size=(300, 300)), names, (0.2, 0.5, 0.7, 0.75)))
    assert (picture[-20:, -6:] == 32).all()
    assert (picture[-20:, -200:] > 200).any()


def test_names_of_classes_may_be_anything() -> None:
    """Pillow measures no text of several lines, and draws none that is not Unicode."""
    image = torch.zeros(48, 64, 3, dtype=torch.uint8)
    names = ["two\nlines", "not Unicode \udcff", "\0"]
    legend = np.asarray(draw_overlay(image, two_cells(), names))[-22:]
    assert (legend > 200).any()
