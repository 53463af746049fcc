"""Views of a picture and the average of what they find."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from maskrcnn.predict.augment import View, average, detect_in_views, views
from maskrcnn.structures import Detections


def detections(boxes: list[list[float]], scores: list[float], size: tuple[int, int] = (60, 80)) -> Detections:
    masks = torch.rand(len(boxes), 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(len(boxes), dtype=torch.int64)
    return Detections(torch.tensor(boxes).view(-1, 4), torch.tensor(scores), labels, masks, size)


@pytest.mark.parametrize(("augment", "count"), [("none", 1), ("flips", 4), ("rotations", 8), ("scales", 10)])
def test_views_differ_and_begin_with_the_picture(augment: str, count: int) -> None:
    image = torch.randint(0, 256, (12, 20, 3), dtype=torch.uint8)
    made = [view.image(image) for view in views(augment)]  # type: ignore[arg-type]
    assert torch.equal(made[0], image)
    assert len({(tuple(one.shape), bytes(one.contiguous().numpy())) for one in made}) == count


def test_an_unknown_augmentation() -> None:
    with pytest.raises(ValueError, match="expected one of none, flips"):
        views("all")  # type: ignore[arg-type]


@pytest.mark.parametrize("view", views("scales"), ids=str)
def test_cells_of_a_view_come_back_to_where_they_are(view: View) -> None:
    """A bright rectangle, whose box is measured in the view; its mask has a bright corner."""
    image = torch.zeros((60, 80, 3), dtype=torch.uint8)
    image[10:30, 20:60] = 120
    image[10:20, 20:40] = 255
    seen = view.image(image)[:, :, 0]
    rows, columns = torch.nonzero(seen > 60, as_tuple=True)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    part = seen[box[1] : box[3], box[0] : box[2]].float()[None, None]
    mask = torch.nn.functional.interpolate(part, (28, 28), mode="bilinear", antialias=True)[0] / 255
    found = Detections(torch.tensor([box]).float(), torch.ones(1), torch.ones(1).long(), mask, tuple(seen.shape))
    back = view.invert(found, (60, 80))
    assert back.size == (60, 80)
    assert (back.boxes - torch.tensor([[20.0, 10, 60, 30]])).abs().max() <= (0 if view.scale == 1 else 1)
    assert back.masks[0, 2:11, 2:11].min() > 0.9
    assert back.masks[0, 17:].max() < 0.6


def test_the_average_of_one_cell_seen_several_times() -> None:
    cells = average([detections([[10, 10, 30, 30]], [0.9]), detections([[12, 10, 32, 30]], [0.3]), detections([], [])])
    assert cells.scores.tolist() == pytest.approx([0.4])  # the third view did not see it
    assert cells.boxes[0].tolist() == pytest.approx([10.5, 10, 30.5, 30])  # weights 3 to 1
    same = average([detections([[10, 10, 30, 30]], [0.9])] * 4)
    assert torch.allclose(same.masks, detections([[0, 0, 1, 1]], [1.0]).masks, atol=1e-5)
    assert same.scores.tolist() == pytest.approx([0.9])


def test_cells_apart_other_classes_and_the_same_view_stay_apart() -> None:
    one = detections([[10, 10, 30, 30], [11, 10, 31, 30]], [0.8, 0.7])  # what one view calls two cells are two
    other = detections([[10, 10, 30, 30], [50, 40, 70, 58]], [0.6, 0.9])
    other = Detections(other.boxes, other.scores, torch.tensor([2, 1]), other.masks, other.size)
    cells = average([one, other])
    assert sorted(zip(cells.scores.tolist(), cells.labels.tolist(), strict=True)) == [
        (pytest.approx(0.3), 2),
        (pytest.approx(0.35), 1),
        (pytest.approx(0.4), 1),
        (pytest.approx(0.45), 1),
    ]
    assert (cells.scores[1:] <= cells.scores[:-1]).all()


def test_no_view_finds_anything() -> None:
    nothing = detections([], [])
    assert len(average([nothing, nothing])) == 0


def test_each_image_is_seen_in_every_view() -> None:
    calls = []

    def detect(images: Sequence[Tensor]) -> list[Detections]:
        calls.append([tuple(image.shape) for image in images])
        return [detections([[1, 1, 9, 9]], [0.5], tuple(image.shape[:2])) for image in images]

    found = detect_in_views(detect, [torch.zeros(10, 20, 3, dtype=torch.uint8)] * 2, "rotations")
    assert len(calls) == 8
    assert {shape for call in calls for shape in call} == {(10, 20, 3), (20, 10, 3)}
    assert [cells.size for cells in found] == [(10, 20)] * 2
