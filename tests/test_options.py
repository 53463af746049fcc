"""Every option has a range, which the command line, the API and checkpoints enforce."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import maskrcnn
from maskrcnn.cli import COMMANDS, main
from maskrcnn.data.synthetic import write_dataset
from maskrcnn.engine.config import DataOptions, ModelOptions, OptimOptions, TrainConfig
from maskrcnn.engine.evaluate import EvaluateConfig
from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.convert import ConvertConfig
from maskrcnn.model import mask_rcnn_resnet_fpn
from maskrcnn.options import Fraction, Range, check_options, check_value, checked, from_plain, plain
from tests.conftest import tiny_config

GROUPS = (DataOptions, ModelOptions, OptimOptions, TrainConfig, EvaluateConfig, InferConfig, ConvertConfig)
REQUIRED: dict[type, dict[str, Any]] = {ConvertConfig: {"out": Path("out"), "format": ("labels",)}}
STRANGE = (math.nan, math.inf, -math.inf, -1, 0, 10**400, 1e300, -(10**30), True, "text")


def numbers_of(annotation: Any, ranges: tuple[Range, ...] = ()) -> Iterator[tuple[type, tuple[Range, ...]]]:
    """The int and float types in an annotation, each with the ranges that hold for it."""
    if get_origin(annotation) is Annotated:
        own = tuple(extra for extra in annotation.__metadata__ if isinstance(extra, Range))
        yield from numbers_of(get_args(annotation)[0], ranges + own)
    elif annotation in (int, float):
        yield annotation, ranges
    elif get_origin(annotation) is not Literal:
        for inner in get_args(annotation):
            yield from numbers_of(inner, ranges)


NUMERIC = [
    pytest.param(group, name, annotation, id=f"{group.__name__}.{name}")
    for group in GROUPS
    for name, annotation in get_type_hints(group, include_extras=True).items()
    if list(numbers_of(annotation))
]


def test_all_commands_were_looked_at() -> None:
    kinds = {getattr(kind, "__origin__", kind) for kind, _ in COMMANDS.values()}
    numeric = {kind for kind in kinds if any(list(numbers_of(hint)) for hint in get_type_hints(kind).values())}
    nested = {get_type_hints(TrainConfig)[name] for name in ("data_options", "model_options", "optim_options")}
    assert numeric | nested == set(GROUPS)
    assert len(NUMERIC) >= 45


@pytest.mark.parametrize(("group", "name", "annotation"), NUMERIC)
def test_every_number_has_a_range_and_keeps_to_it(group: type, name: str, annotation: Any) -> None:
    for kind, ranges in numbers_of(annotation):
        assert ranges, f"{group.__name__}.{name}: a {kind.__name__} without a Range"
    options = group(**REQUIRED.get(group, {}))
    default = getattr(options, name)
    for strange in STRANGE:
        value = (strange,) * max(1, len(default or ())) if "tuple" in str(annotation) else strange
        options = dataclasses.replace(options, **{name: value})
        if strange in (0, -1) and any(strange in ranges[0] for _, ranges in numbers_of(annotation)):
            check_options(options)
            continue
        with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')} is .*; expected ") as error:
            check_options(options)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train --seed -1", "--seed is -1; expected a whole number, 0 to 9223372036854775807"),
        ("train --weight-decay -1", "--weight-decay is -1.0; expected 0 to 1000"),
        ("train --scale-max inf", "--scale-max is inf; expected 0.0625 to 16 or None"),
        ("train --scale-min 2 --scale-max 1", "--scale-min is 2.0; expected at most --scale-max, 1.0"),
        ("train --roi-positive-fraction nan", "--roi-positive-fraction is nan; expected 0 to 1"),
        ("train --roi-batch-per-image 0", "--roi-batch-per-image is 0; expected a whole number, 1 to 1000000"),
        ("train --clip-norm nan", "--clip-norm is nan; expected 0 to 1000000"),
        ("train --color-jitter 1", "--color-jitter is 1.0; expected at least 0 and below 1"),
        ("train --crop 100", "--crop is 100; expected a multiple of 32, 32 to 16384"),
        ("train --diameter 4", "--diameter is 4.0; expected 8 to 512 or none"),
        ("train --percentiles 0 nan", "--percentiles is (0.0, nan); expected 2 values: 0 to 100, 0 to 100 or None"),
        ("train --percentiles 9 1", "--percentiles is (9.0, 1.0); expected rising numbers"),
        ("train --anchor-ratios 1 inf", "--anchor-ratios is (1.0, inf); expected a list, each 0.01 to 100"),
        ("train --anchor-sizes 8 16 32 64 inf", "--anchor-sizes is 8 16 32 64 inf; expected sizes in pixels for 5"),
        ("predict --images a --score-threshold 2", "--score-threshold is 2.0; expected 0 to 1 or None"),
        ("predict --images a --diameter inf", "--diameter is inf; expected above 0 and at most 1000000 or auto or"),
        ("predict --images a --channels 0 -1", "--channels is (0, -1); expected a list, each a whole number, 0 to"),
        ("evaluate --tile 0", "--tile is 0; expected a whole number, 32 to 65536 or None"),
        ("evaluate --diameter nan", "--diameter is nan; expected above 0"),
    ],
)
def test_the_command_line_says_it_in_one_line(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(command.split())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {expected}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"precision": "fp64"}, "precision is 'fp64'; expected auto, fp32 or bf16"),
        ({"precision": None}, "precision is None; expected auto, fp32 or bf16"),
        ({"box_score_threshold": 2}, "box_score_threshold is 2; expected 0 to 1 or None"),
        ({"box_score_threshold": math.nan}, "box_score_threshold is nan"),
        ({"tile": 64.5}, r"tile is 64\.5; expected a whole number, 32 to 65536"),
        ({"tile": 10**12}, "tile is 1000000000000"),
        ({"overlap": -1}, "overlap is -1"),
        ({"tile": 64, "overlap": 64}, "overlap is 64; expected less than the tile, 64"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"augment": "all"}, "augment is 'all'; expected none, flips, rotations or scales"),
    ],
)
def test_the_api_has_the_same_ranges(tiny_run: Path, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=f"^{expected}"):
        maskrcnn.load(tiny_run / "best.pt", **{"device": "cpu", **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 20},
        {"num_classes": 10**9},
        {"mask_convs": 10**9},
        {"anchor_sizes": ((8.0, math.nan), (16,), (32,), (64,), (128,))},
        {"anchor_ratios": (math.inf,)},
        {"nms_threshold": math.nan},
        {"pixel_std": (0.2, 0.0, 0.2)},
        {"norm": "layer"},
        {"rpn_pre_nms": (100,)},
    ],
)
def test_no_network_is_built_from_nonsense(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(arguments))} is "):
        mask_rcnn_resnet_fpn(**{"depth": 18, "num_classes": 2, **arguments})


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"train": 1}, {"size": 16}, {"test": 2.5}])
def test_no_synthetic_pictures_are_drawn_from_nonsense(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(arguments))} is "):
        write_dataset(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()


def test_a_range_includes_its_ends_but_for_open_ones() -> None:
    assert [value in Range(0, 1) for value in (-0.1, 0, 1, 1.1, math.nan)] == [False, True, True, False, False]
    assert [value in Range(0, 1, open_low=True) for value in (0, 1e-9, 1)] == [False, True, True]
    assert [value in Range(0, 1, open_high=True) for value in (0, 1)] == [True, False]
    assert [value in Range(32, 96, multiple_of=32) for value in (0, 32, 33, 96, 128)] == [
        False,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numbers_of_numpy_are_numbers(value: float) -> None:
    check_value("share", value, Fraction)


@pytest.mark.parametrize("value", [None, "0.5", True, [0.5], torch.tensor([0.5, 0.5])])
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(InputError, match=r"^share is .*; expected 0 to 1$"):
        check_value("share", value, Fraction)


def test_a_checked_function_is_called_as_before() -> None:
    @checked
    def area(width: Annotated[float, Range(0, 9)], height: Annotated[float, Range(0, 9)] = 2.0) -> float:
        """Width times height."""
        return width * height

    assert (area(3), area(3, 3), area(height=1, width=4), area.__doc__) == (6, 9, 4, "Width times height.")
    with pytest.raises(InputError, match=r"^height is 10; expected 0 to 9$"):
        area(1, height=10)
    with pytest.raises(TypeError, match="missing a required argument: 'width'"):
        area()  # type: ignore[call-arg]


def test_options_survive_json() -> None:
    config = tiny_config(Path("data"), Path("out"))
    assert TrainConfig.from_dict(plain(config)) == config
    other = dataclasses.replace(config, from_="nuclei", data_options=DataOptions(percentiles=None, diameter="none"))
    assert TrainConfig.from_dict(other.to_dict()) == other


def test_options_of_earlier_versions() -> None:
    """They had one source of data or none, no diameter, and fewer options."""
    before = {"data_options": {"data": "cells", "crop": 64}, "model_options": {}, "optim_options": {}, "seed": 3}
    config = TrainConfig.from_dict(before)
    old = DataOptions(data=(Path("cells"),), crop=64, diameter="none", off_scale_probability=0.0)
    assert config.data_options == old
    assert (config.model_options, config.seed) == (ModelOptions(), 3)
    none = TrainConfig.from_dict({**before, "data_options": {"data": None, "val": None}})
    assert none.data_options.data == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": 1}, "unknown options: colour"),
        ({"seed": "one"}, "--seed is 'one'; expected a whole number"),
        ({"model_options": {"depth": 19}}, "--depth is 19; expected 18, 34, 50 or 101"),
        ({"model_options": {"anchor_ratios": 3}}, "--anchor-ratios is 3; expected a list"),
        ({"model_options": None}, "NoneType found; expected options by name"),
        ({"optim_options": {"momentum": 0.5}}, "unknown options: momentum"),
        ({"data_options": 5}, "written by another version or are damaged"),
        ({"data_options": {"data": 5}}, "--data is 5; expected a list, each a path"),
        ({"data_options": {"percentiles": [1, 2, 3]}}, r"--percentiles is \[1, 2, 3\]; expected 2 values"),
        ({"out": 3}, "--out is 3; expected a path or None"),
    ],
)
def test_options_of_no_version_are_named(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        TrainConfig.from_dict({**TrainConfig().to_dict(), **change})


@pytest.mark.parametrize("group", ["data_options", "model_options", "optim_options"])
def test_odd_values_of_a_checkpoint_are_refused_or_options(group: str) -> None:
    """Any value in place of any other: what is taken comes back as it was given."""
    refused = 0
    for name in TrainConfig().to_dict()[group]:
        for odd in (None, -1, 10**400, 2.5, math.nan, "x", [], [None], {}, {"x": 1}, True, torch.ones(2), b"x"):
            values = TrainConfig().to_dict()
            values[group][name] = odd
            try:
                config = TrainConfig.from_dict(values)
            except InputError:
                refused += 1
            else:
                assert config.to_dict()[group][name] in (odd, [], [odd])
    assert refused > 100


def test_from_plain_names_what_it_cannot_use() -> None:
    with pytest.raises(InputError, match="list found; expected options by name"):
        from_plain(OptimOptions, [1])
