"""Which pictures train and which validate, and how often each is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maskrcnn.errors import InputError

GROUP_ORDERS = 32
"""Random orders that a split by groups tries: groups are of any size, and one order may end far from the shares."""

SHOWN_NAMES = 3
"""Pictures of each kind that :func:`split_changes` names."""

Indices = npt.NDArray[np.int64]
Split = tuple[Sequence[str], Sequence[str]]


def train_val_split(
    class_counts: npt.NDArray[np.int64], fraction: float, seed: int, groups: npt.NDArray[np.int64] | None = None
) -> tuple[Indices, Indices]:
    """Split pictures so that every class has about the same share of pictures on both sides.

    Iterative stratification (Sechidis et al. 2011, On the Stratification of Multi-label Data, section 3.1): the class
    with the fewest pictures left is shared out first. A class that two or more groups have is on both sides. Groups are
    shared out whole, in several random orders, of which the one with the best shares is kept.

    Args:
        class_counts: [n, K], cells of each class in each picture; a picture without cells counts as a class of its own.
            Columns may be finer than classes, such as :meth:`maskrcnn.data.joined.JoinedDataset.kind_counts`.
        fraction: share of the pictures for validation, above 0 and below 1.
        seed: of the random order.
        groups: [n], numbers; pictures of one number stay on one side. Default: each picture is a group.

    Returns:
        Ascending int64 indices of the training and of the validation pictures; neither is empty.

    Raises:
        InputError: for fewer than 2 pictures or groups.
    """
    count = len(class_counts)
    if count < 2:
        raise InputError(f"{count} picture(s) cannot be split into training and validation; expected at least 2")
    has = np.concatenate([class_counts > 0, (class_counts.sum(1) == 0)[:, None]], axis=1)
    group = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    table = np.zeros((group.max() + 1, has.shape[1]), np.int64)  # [groups, K+1] pictures of each class
    np.add.at(table, group, has)
    sizes = np.bincount(group)
    if len(sizes) < 2:
        raise InputError(f"{count} pictures of one group cannot be split into training and validation")
    rng = np.random.default_rng(seed)
    tries = 1 if groups is None else GROUP_ORDERS
    orders = [_share_out(table, sizes, fraction, rng) for _ in range(tries)]
    side = min(orders, key=lambda side: _unevenness(table, sizes, side, fraction))
    _put_classes_on_both_sides(table[:, :-1], sizes, side)
    if side.min() == side.max():  # a very small set: one group moves over
        moved = int(rng.integers(len(side)))
        side[moved] = 1 - side[moved]
    return np.flatnonzero(side[group] == 0), np.flatnonzero(side[group] == 1)


def _share_out(
    table: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> Indices:
    """The side of each group, 0 training and 1 validation: one pass of the iterative stratification.

    Args:
        table: [groups, K], pictures of each class in each group.
        sizes: [groups], pictures.
    """
    shares = np.array([1 - fraction, fraction])
    wanted = shares[:, None] * table.sum(0)  # [2, K] pictures of each class that each side still wants
    room = shares * sizes.sum()
    left = np.ones(len(table), dtype=bool)
    side = np.zeros(len(table), dtype=np.int64)
    while left.any():
        remaining = table[left].sum(0)
        rarest = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        for group in rng.permutation(np.flatnonzero(left & (table[:, rarest] > 0))):
            choice = _side(wanted[:, rarest], room)
            side[group] = choice
            wanted[choice] -= table[group]
            room[choice] -= sizes[group]
            left[group] = False
    return side


def _unevenness(
    table: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], side: Indices, fraction: float
) -> np.float64:
    """How far the validation shares of the classes, and of all pictures, are from ``fraction``, summed up."""
    columns = np.concatenate([table, sizes[:, None]], axis=1)
    columns = columns[:, columns.any(0)]
    return np.abs(columns[side == 1].sum(0) / columns.sum(0) - fraction).sum()


def _side(wanted: npt.NDArray[np.float64], room: npt.NDArray[np.float64]) -> int:
    """The side that wants the class most, then the one with more room, then training."""
    if wanted[0] != wanted[1]:
        return int(wanted[1] > wanted[0])
    return int(room[1] > room[0])


def _put_classes_on_both_sides(table: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], side: Indices) -> None:
    """A class with all its (two or more) groups on one side gives one to the other, if no other class loses by it: the
    smallest that can go."""
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
    """What is different between the split that a run was started with and the one that its data gives now.

    Args:
        before, now: the names of the training and of the validation pictures.

    Returns:
        One line that counts the pictures and names a few, such as ``1 new (d), 2 moved from training to validation (a,
        b)``; None where both sides have the same pictures as before, in any order.
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
    """How often each picture is shown in an epoch (Gupta et al. 2019, LVIS, section 5.1, repeat-factor sampling):

    r_c = max(1, sqrt(threshold / f_c)) for the share f_c of pictures with class c, r_i = max over the classes of i.

    Args:
        class_counts: [n, K]; columns may be finer than classes, as for :func:`train_val_split`.
        threshold: 0 gives 1 for every picture; 1 shows a class with the share f of the pictures 1 / sqrt(f) times.

    Returns:
        float64 [n], at least 1.
    """
    has = class_counts > 0
    frequency = has.mean(0)
    of_class = np.ones(has.shape[1])
    present = frequency > 0
    of_class[present] = np.maximum(1.0, np.sqrt(threshold / frequency[present]))
    return np.where(has, of_class, 1.0).max(1, initial=1.0)
