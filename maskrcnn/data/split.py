"""Split into training and validation pictures, and repeat factors for balanced sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskrcnn.errors import InputError

GROUP_ORDERS = 32
"""Random orders to try for a split by groups: with groups of any size, one order may miss the fractions by far."""

SHOWN_NAMES = 3
"""Number of pictures of each kind that :func:`split_changes` names."""

Indices = npt.NDArray[np.int64]
Split = tuple[Sequence[str], Sequence[str]]


def train_val_split(
    class_counts: npt.NDArray[np.int64], fraction: float, seed: int, groups: npt.NDArray[np.int64] | None = None
) -> tuple[Indices, Indices]:
    """Split pictures into training and validation so that the same fraction of each class is in validation.

    Iterative stratification (Sechidis et al. 2011, On the Stratification of Multi-label Data, section 3.1): the class
    with the fewest pictures left is distributed first. A class that is in two or more groups is on both sides. Groups
    are never divided; several random orders are tried, and the one closest to the fractions is kept.

    Args:
        class_counts: [n, K], number of cells per picture and class; pictures without cells count as another class.
            Columns may be finer than classes, such as :meth:`maskrcnn.data.joined.JoinedDataset.kind_counts`.
        fraction: fraction of the pictures for validation, above 0 and below 1.
        seed: seed of the random order.
        groups: [n], group numbers; a group stays on one side. Default: each picture is a group.

    Returns:
        Ascending int64 indices of the training and the validation pictures; neither is empty.

    Raises:
        InputError: for fewer than 2 pictures or groups.
    """
    count = len(class_counts)
    if count < 2:
        raise InputError(f"{count} picture(s) cannot be split into training and validation; expected at least 2")
    has = np.concatenate([class_counts > 0, (class_counts.sum(1) == 0)[:, None]], axis=1)
    group = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    table = np.zeros((group.max() + 1, has.shape[1]), np.int64)  # pictures per group and class, [groups, K+1]
    np.add.at(table, group, has)
    sizes = np.bincount(group)
    if len(sizes) < 2:
        raise InputError(f"{count} pictures of one group cannot be split into training and validation")
    rng = np.random.default_rng(seed)
    tries = 1 if groups is None else GROUP_ORDERS
    candidates = [_stratify(table, sizes, fraction, rng) for _ in range(tries)]
    side = min(candidates, key=lambda side: _imbalance(table, sizes, side, fraction))
    _put_classes_on_both_sides(table[:, :-1], sizes, side)
    if side.min() == side.max():  # a very small set: move one group
        moved = int(rng.integers(len(side)))
        side[moved] = 1 - side[moved]
    return np.flatnonzero(side[group] == 0), np.flatnonzero(side[group] == 1)


def _stratify(
    table: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> Indices:
    """Assign each group to side 0 (training) or 1 (validation) by one pass of iterative stratification.

    Args:
        table: [groups, K], number of pictures per group and class.
        sizes: [groups], number of pictures.
    """
    fractions = np.array([1 - fraction, fraction])
    desired = fractions[:, None] * table.sum(0)  # pictures of each class that each side still needs, [2, K]
    desired_total = fractions * sizes.sum()
    unassigned = np.ones(len(table), dtype=bool)
    side = np.zeros(len(table), dtype=np.int64)
    while unassigned.any():
        remaining = table[unassigned].sum(0)
        rarest = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        for group in rng.permutation(np.flatnonzero(unassigned & (table[:, rarest] > 0))):
            choice = _choose_side(desired[:, rarest], desired_total)
            side[group] = choice
            desired[choice] -= table[group]
            desired_total[choice] -= sizes[group]
            unassigned[group] = False
    return side


def _imbalance(
    table: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], side: Indices, fraction: float
) -> np.float64:
    """Sum of the differences between ``fraction`` and the validation fractions of the classes and of all pictures."""
    columns = np.concatenate([table, sizes[:, None]], axis=1)
    columns = columns[:, columns.any(0)]
    return np.abs(columns[side == 1].sum(0) / columns.sum(0) - fraction).sum()


def _choose_side(desired: npt.NDArray[np.float64], desired_total: npt.NDArray[np.float64]) -> int:
    """The side that needs most pictures of the class; if equal, most pictures in total; if equal, training."""
    if desired[0] != desired[1]:
        return int(desired[1] > desired[0])
    return int(desired_total[1] > desired_total[0])


def _put_classes_on_both_sides(table: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], side: Indices) -> None:
    """If all groups of a class (two or more) are on one side, move the smallest one, unless another class would then be
    missing on its side."""
    has = table > 0
    for k in range(has.shape[1]):
        members = np.flatnonzero(has[:, k])
        if len(members) < 2 or len(np.unique(side[members])) == 2:
            continue
        for group in members[np.argsort(sizes[members], kind="stable")]:
            others = [j for j in np.flatnonzero(has[group]) if j != k]
            same = side == side[group]
            if all((has[:, j] & same).sum() > 1 for j in others):
                side[group] = 1 - side[group]
                break


def split_changes(before: Split, now: Split) -> str | None:
    """Describe the differences between the split at the start of a run and the split of its data now.

    Args:
        before, now: names of the training and the validation pictures.

    Returns:
        One line that counts the pictures and names some, such as ``1 new (d), 2 moved from training to validation (a,
        b)``; None if both sides have the same pictures, in any order.
    """
    (train, val), (train_now, val_now) = (tuple(map(set, split)) for split in (before, now))
    changes = [
        ("gone", (train | val) - (train_now | val_now)),
        ("new", (train_now | val_now) - (train | val)),
        ("moved from training to validation", train & val_now),
        ("moved from validation to training", val & train_now),
    ]
    parts = []
    for what, names in changes:
        if names:
            shown = ", ".join(sorted(names)[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
            parts.append(f"{len(names)} {what} ({shown})")
    return ", ".join(parts) or None


def repeat_factors(class_counts: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.float64]:
    """How often each picture is drawn per epoch (repeat-factor sampling; Gupta et al. 2019, LVIS, section 5.1).

    r_c = max(1, sqrt(threshold / f_c)) for the fraction f_c of pictures with class c; r_i = max over the classes of i.

    Args:
        class_counts: [n, K]; columns may be finer than classes, as for :func:`train_val_split`.
        threshold: 0 gives 1 for every picture; 1 repeats a class with the fraction f of the pictures 1 / sqrt(f) times.

    Returns:
        float64 [n], at least 1.
    """
    has = class_counts > 0
    frequency = has.mean(0)
    of_class = np.ones(has.shape[1])
    present = frequency > 0
    of_class[present] = np.maximum(1.0, np.sqrt(threshold / frequency[present]))
    return np.where(has, of_class, 1.0).max(1, initial=1.0)
