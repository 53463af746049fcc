"""Pictures of arrays and tensors in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from maskrcnn.data.colours import chosen_channels, pick
from maskrcnn.data.picture import Picture, in_memory
from maskrcnn.data.stored import Array
from maskrcnn.errors import InputError


def picture_of(
    array: npt.ArrayLike | Tensor,
    percentiles: tuple[float, float] | None,
    name: str = "image",
    channels: Sequence[int] | None = None,
) -> Picture:
    """Make a :class:`Picture` of an array [H, W], [H, W, 3] or [H, W, 4] of integers or floats.

    Args:
        array: an array in any byte order, a tensor on any device, or array-like. The last of four channels is alpha.
        percentiles: see :class:`Picture`.
        name: for messages.
        channels: see :func:`open_pictures`; if given, ``array`` may have any number of channels.

    Raises:
        InputError: for another shape or dtype, no pixels, values that are not finite, or a missing channel.
    """
    array = _to_numpy(array, name)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError(f"{name}: an array of shape {array.shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    pixels = array if array.ndim == 3 else array[:, :, None]
    count = pixels.shape[2]
    if channels is None and count not in (1, 3, 4):
        raise InputError(f"{name}: an array of shape {array.shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise InputError(f"{name}: an array of {array.dtype}, expected integers or finite floats")
    pixels = pick(pixels, chosen_channels(count, count == 4, channels, Path(name)))
    return in_memory(pixels, Path(name), name, percentiles)


def _to_numpy(values: npt.ArrayLike | Tensor, name: str) -> Array:
    try:
        if not isinstance(values, Tensor):
            return np.asarray(values)
        narrow = values.is_floating_point() and values.dtype.itemsize <= 2  # NumPy has neither bfloat16 nor float8
        array: Array = (values.detach().float() if narrow else values.detach()).cpu().numpy()
    except (RuntimeError, TypeError, ValueError) as error:  # sparse, quantized or meta tensors; ragged lists
        kind = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise InputError(f"{name}: {kind} that NumPy cannot hold, expected an array of integers or floats") from error
    return array
