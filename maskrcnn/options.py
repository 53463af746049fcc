"""Checks that options and arguments have the type and range that their type annotation declares.

>>> threshold: Annotated[float, Range(0, 1)] = 0.5

The command line's dataclasses, the functions of the API and the options in checkpoints are all checked against their
annotations, so that each range is declared in one place.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from maskrcnn.errors import InputError

_MICROMETRES = re.compile(r"\d+(\.\d*)? ?[uµμ]m")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, for ``Annotated[int, Range(1, 9)]``; infinity and NaN are in no range.

    Attributes:
        low, high: the smallest and the largest number; included unless the end is open.
        open_low, open_high: whether that end is excluded.
        multiple_of: numbers must be multiples of this.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    multiple_of: int = 1

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and (self.multiple_of == 1 or value % self.multiple_of == 0)

    def __str__(self) -> str:
        numbers = f"{self.low} to {self.high}"
        if self.open_low or self.open_high:
            numbers = f"{'above' if self.open_low else 'at least'} {self.low} and "
            numbers += f"{'below' if self.open_high else 'at most'} {self.high}"
        return numbers if self.multiple_of == 1 else f"a multiple of {self.multiple_of}, {numbers}"


@dataclass(frozen=True)
class Micrometres:
    """Text with a length in micrometres above 0, for ``Annotated[str, Micrometres()]``: ``8um``, ``7.5 µm``."""

    def __contains__(self, value: str) -> bool:
        return _MICROMETRES.fullmatch(value) is not None and Micrometres.of(value) > 0

    def __str__(self) -> str:
        return "a length in micrometres, such as 8um"

    @staticmethod
    def of(text: str) -> float:
        """The number of micrometres."""
        return float(text.rstrip("umµμ "))


Fraction = Annotated[float, Range(0, 1)]
"""A fraction, probability or score."""

Percentile = Annotated[float, Range(0, 100)]


def check_value(name: str, value: object, annotation: Any) -> None:
    """Raise InputError, which starts with ``name``, unless ``value`` has the annotated type and is in its range.

    Annotations other than numbers, text, paths, Literal, None, and unions, sequences and dicts of these are not
    checked.
    """
    if not _fits(value, annotation):
        shown = " ".join((repr(value) if isinstance(value, str) else str(value)).split())
        raise InputError(f"{name} is {shown[:100]}; expected {_expected(annotation)}")


def check_options(options: Any) -> None:
    """Check every field of a dataclass and of nested ones; errors call ``score_threshold`` ``--score-threshold``."""
    for name, annotation in _annotations(type(options)).items():
        value = getattr(options, name)
        if dataclasses.is_dataclass(value):
            check_options(value)
        else:
            check_value(f"--{name.strip('_').replace('_', '-')}", value, annotation)


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, object]) -> None:
    """Raise InputError unless ``function`` can be called with these arguments: no name is unknown or missing, and each
    value is as annotated."""
    parameters, annotations = inspect.signature(function).parameters, _annotations(function)
    if unknown := [name for name in arguments if name not in parameters]:
        raise InputError(f"unknown: {', '.join(map(str, unknown))[:200]}")
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise InputError(f"missing: {', '.join(missing)}")
    for name, value in arguments.items():
        check_value(name, value, annotations.get(name, Any))


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that checks each call's arguments against the annotations of ``function``; raises InputError."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        annotations = _annotations(function)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_value(name, value, annotations.get(name, Any))
        return function(*args, **kwargs)

    return call


def from_plain(kind: type[T], values: object) -> T:
    """Build the dataclass ``kind`` from values of JSON types, converted as its field annotations say.

    Lists become tuples, text becomes paths, dicts become dataclasses; missing names keep their defaults.

    Raises:
        InputError: an unknown or missing name, or a value of another type or out of its range.
    """
    annotations = _annotations(kind)
    if not isinstance(values, dict):
        raise InputError(f"{type(values).__name__} found; expected options by name")
    if unknown := [name for name in values if name not in annotations]:
        raise InputError(f"unknown options: {', '.join(map(str, unknown))[:200]}")
    built: dict[str, Any] = {}
    for name, value in values.items():
        kind_of_field: Any = annotations[name]
        build = from_plain if dataclasses.is_dataclass(kind_of_field) else _typed
        built[name] = build(kind_of_field, value)
    required = [name for name, parameter in inspect.signature(kind).parameters.items() if parameter.default is _MISSING]
    if missing := [name for name in required if name not in built]:
        raise InputError(f"missing: {', '.join(missing)}")
    result = kind(**built)
    check_options(result)
    return result


def from_flat(kind: type[T], values: object) -> T:
    """Build the dataclass ``kind`` like :func:`from_plain` from options by their names on the command line.

    ``val-fraction`` is ``val_fraction``, and the options of nested dataclasses may be given with or without their
    group: ``{"crop": 256}`` is ``{"data_options": {"crop": 256}}``.
    """
    if not isinstance(values, dict):
        raise InputError(f"{type(values).__name__} found; expected options by name")
    annotations = _annotations(kind)
    groups = {name: set(_annotations(group)) for name, group in annotations.items() if dataclasses.is_dataclass(group)}
    nested: dict[str, Any] = {}
    for given, value in values.items():
        name = str(given).replace("-", "_")
        name = f"{name}_" if f"{name}_" in annotations else name  # "from" is no name in Python
        group = next((group for group, names in groups.items() if name in names), None)
        if name in groups and isinstance(value, dict):
            nested.setdefault(name, {}).update({str(inner).replace("-", "_"): one for inner, one in value.items()})
        elif group is not None:
            nested.setdefault(group, {})[name] = value
        else:
            nested[name] = value
    return from_plain(kind, nested)


def names_of_lists(kind: Any) -> set[str]:
    """Names of a dataclass's fields, and of nested ones, that hold several values."""
    names = set()
    for name, annotation in _annotations(kind).items():
        if dataclasses.is_dataclass(annotation):
            names |= names_of_lists(annotation)
        elif any(get_origin(one) is tuple for one in (annotation, *get_args(annotation))):
            names.add(name)
    return names


def plain(value: Any) -> Any:
    """``value`` in JSON types: dataclasses as dicts, tuples as lists, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _annotations(owner: Any) -> dict[str, Any]:
    hints = get_type_hints(owner, include_extras=True)
    if dataclasses.is_dataclass(owner):
        return {field.name: hints[field.name] for field in dataclasses.fields(owner)}
    return hints


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = [extra for extra in annotation.__metadata__ if isinstance(extra, Range | Micrometres)]
        return _fits(value, arguments[0]) and all(value in extra for extra in ranges)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and arguments[-1] is not Ellipsis:
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if annotation is float:
        return _fits(value, int) or (isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value))
    if annotation is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    kinds = {bool: bool, str: str, Path: str | os.PathLike, None: NoneType, NoneType: NoneType}
    return isinstance(value, kinds[annotation]) if annotation in kinds else True


def _expected(annotation: Any) -> str:
    """The values that an annotation allows, in words for an error message."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = [extra for extra in annotation.__metadata__ if isinstance(extra, Range | Micrometres)]
        whole = ""
        if arguments[0] is int and any(isinstance(one, Range) and one.multiple_of == 1 for one in ranges):
            whole = "a whole number, "
        return whole + " and ".join(map(str, ranges)) if ranges else _expected(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_expected(one) for one in arguments)
    if origin is Literal:
        return ", ".join(map(str, arguments[:-1])) + (" or " if arguments[1:] else "") + str(arguments[-1])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} values: {', '.join(map(_expected, arguments))}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {_expected(arguments[0])}"
    names = {float: "a finite number", int: "a whole number", str: "text", bool: "True or False", Path: "a path"}
    return names.get(annotation, "None" if annotation in (None, NoneType) else "another type")


def _typed(annotation: Any, value: Any) -> Any:
    """Convert a value of JSON types to the annotated type; values that do not fit are left for the check to reject."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _typed(arguments[0], value)
    if origin in (Union, UnionType):
        fitting = (typed for one in arguments if _fits(typed := _typed(one, value), one))
        return next(fitting, value)
    if origin is tuple and isinstance(value, list):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(map(_typed, inner, value)) if len(inner) == len(value) else tuple(value)
    return Path(value) if annotation is Path and isinstance(value, str) else value
