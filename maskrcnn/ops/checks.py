"""Argument checks that several ops share; each raises an error that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

from maskrcnn.options import Range


def check_boxes(name: str, boxes: Tensor, columns: int = 4) -> None:
    """Raise ValueError unless ``boxes`` is floating point [N, columns]."""
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        raise ValueError(f"{name} has shape {tuple(boxes.shape)}; expected [N, {columns}]")
    if not boxes.is_floating_point():
        raise ValueError(f"{name} has dtype {boxes.dtype}; expected a floating point type")


def check_vector(name: str, values: Tensor, count: int) -> None:
    """Raise ValueError unless ``values`` has shape [count]."""
    if values.shape != (count,):
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected [{count}]")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, {other_name} on {other.device}; expected one device")


def check_range(name: str, value: float, allowed: Range) -> None:
    """Raise ValueError unless ``value`` is in the range ``allowed``; NaN never is."""
    if value not in allowed:
        raise ValueError(f"{name} is {value}; expected {allowed}")


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 tensors as float32: boxes and sums need more digits than those types have."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def refuse_any(bad: Tensor, message: str, *values: Tensor) -> None:
    """Raise RuntimeError if a row of the bool tensor ``bad`` has a True: ``message`` with the number of the first such
    row, and its entry in each of ``values``, in place of its braces."""
    rows = bad.flatten(1).any(1) if bad.dim() > 1 else bad
    if rows.any():
        row = int(rows.int().argmax())
        raise RuntimeError(message.format(row, *(each[row].item() for each in values)))
