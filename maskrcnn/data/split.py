"""Which pictures train and which validate, and how often each is shown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskrcnn.errors import InputError

Indices = npt.NDArray[np.int64]


def train_val_split(class_counts: npt.NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split pictures so that every class has about the same share of pictures on both sides.

    Iterative stratification (Sechidis et al. 2011, On the Stratification of Multi-label Data, section 3.1): the class
    with the fewest pictures left is shared out first. A class that two or more pictures have is on both sides.

    Args:
        class_counts: [n, K], cells of each class in each picture; a picture without cells counts as a class of its own.
        fraction: share of the pictures for validation, above 0 and below 1.
        seed: of the random order.

    Returns:
        Ascending int64 indices of the training and of the validation pictures; neither is empty.

    Raises:
        InputError: for fewer than 2 pictures.
    """
    count = len(class_counts)
    if count < 2:
        raise InputError(f"{count} picture(s) cannot be split into training and validation; expected at least 2")
    has = np.concatenate([class_counts > 0, (class_counts.sum(1) == 0)[:, None]], axis=1)
    rng = np.random.default_rng(seed)
    shares = np.array([1 - fraction, fraction])
    wanted = shares[:, None] * has.sum(0)  # [2, K+1] pictures of each class that each side still wants
    room = shares * count
    left = np.ones(count, dtype=bool)
    side = np.zeros(count, dtype=np.int64)
    while left.any():
        remaining = has[left].sum(0)
        rarest = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        for picture in rng.permutation(np.flatnonzero(left & has[:, rarest])):
            choice = _side(wanted[:, rarest], room)
            side[picture] = choice
            wanted[choice, has[picture]] -= 1
            room[choice] -= 1
            left[picture] = False
    _put_classes_on_both_sides(has[:, :-1], side)
    train, val = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    if len(train) == 0 or len(val) == 0:  # a very small set: one picture moves over
        moved = int(rng.integers(count))
        side[moved] = 1 - side[moved]
        train, val = np.flatnonzero(side == 0), np.flatnonzero(side == 1)
    return train, val


def _side(wanted: npt.NDArray[np.float64], room: npt.NDArray[np.float64]) -> int:
    """The side that wants the class most, then the one with more room, then training."""
    if wanted[0] != wanted[1]:
        return int(wanted[1] > wanted[0])
    return int(room[1] > room[0])


def _put_classes_on_both_sides(has: npt.NDArray[np.bool_], side: Indices) -> None:
    """A class with all its (two or more) pictures on one side gives one to the other, if no other class loses by it."""
    for k in range(has.shape[1]):
        members = np.flatnonzero(has[:, k])
        if len(members) < 2 or len(np.unique(side[members])) == 2:
            continue
        for picture in members:
            others = [j for j in np.flatnonzero(has[picture]) if j != k]
            same = side == side[picture]
            if all((has[:, j] & same).sum() > 1 for j in others):
                side[picture] = 1 - side[picture]
                break


def repeat_factors(class_counts: npt.NDArray[np.int64], threshold: float) -> npt.NDArray[np.float64]:
    """How often each picture is shown in an epoch (Gupta et al. 2019, LVIS, section 5.1, repeat-factor sampling):

    r_c = max(1, sqrt(threshold / f_c)) for the share f_c of pictures with class c, r_i = max over the classes of i.

    Args:
        class_counts: [n, K]; ``threshold``: 0 gives 1 for every picture.

    Returns:
        float64 [n], at least 1.
    """
    has = class_counts > 0
    frequency = has.mean(0)
    of_class = np.ones(has.shape[1])
    present = frequency > 0
    of_class[present] = np.maximum(1.0, np.sqrt(threshold / frequency[present]))
    return np.where(has, of_class, 1.0).max(1, initial=1.0)
