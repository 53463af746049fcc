"""Random changes of JSON values, for tests of what reads them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1.5, 10**9, 10**30, -(10**12), float("nan"), float("inf"), 1e9, 1e300),
    *(
        "",
        "abc",
        "b'abc'",
        "\ud800",
        "\0",
        "0" * 50,
        "x" * 300,
        "PPPPPPPPPPPP",
        [],
        [[]],
        [None],
        [[[1, 2], [3, 4], [5, 6]]],
    ),
    *({}, {"a": 1}, {"size": [20, 30], "counts": "zz"}, [1, 2, 3, 4], [[1, 2], [3, 4], [5, 6]]),
)


def mutated(value: Any, rng: np.random.Generator) -> Any:
    """A copy in which one to three places are replaced by an odd value, taken out, doubled or swapped."""
    changed = copy.deepcopy(value)
    for _ in range(int(rng.integers(1, 4))):
        holder, key = _random_place(changed, rng)
        if holder is None:
            return ODD[int(rng.integers(len(ODD)))]
        kind = rng.integers(4)
        if kind == 0 and isinstance(holder, list):
            holder.insert(int(rng.integers(len(holder) + 1)), copy.deepcopy(holder[key]))
        elif kind == 1:
            del holder[key]
        elif kind == 2 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * int(rng.integers(-3, 1000))
        elif kind == 2 and isinstance(holder[key], str) and holder[key]:
            place = int(rng.integers(len(holder[key])))
            holder[key] = holder[key][:place] + chr(int(rng.integers(32, 128))) + holder[key][place + 1 :]
        else:
            holder[key] = copy.deepcopy(ODD[int(rng.integers(len(ODD)))])
    return changed


def _random_place(value: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """A random container inside the value, at any depth, and one of its keys; (None, None) where there is none."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        holder = stack.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        places += [(holder, key) for key in keys]
        stack += [holder[key] for key in keys]
    return places[int(rng.integers(len(places)))] if places else (None, None)
