"""Finds where a program waits for a GPU, on a machine that need not have one.

Work for a GPU is queued, and the program runs ahead of it, until it asks for a value: then the GPU idles while the
program catches up. These wait: reading a value (``item``, ``tolist``, ``bool``), results whose size depends on values
(``nonzero``, boolean masks, ``unique``), copies between host and device (unless they are ``non_blocking`` and from
page-locked memory), and synchronization.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import maskrcnn.ops

PACKAGE = Path(maskrcnn.__file__).parent
aten = torch.ops.aten

SCALARS = {aten._local_scalar_dense.default, aten.item.default}
SIZE_DEPENDS_ON_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    torch.ops.maskrcnn.mask_runs.default,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


@contextmanager
def waits_for(device: str) -> Iterator[list[str]]:
    """List the places where the block waits, as ``file:line operation``.

    Args:
        device: ``cpu``: the block runs as usual, and tensors on the CPU count as if they were on a GPU; copies do not
            count. ``cuda``: tensors have devices, but no values (:class:`FakeTensorMode`), and copies count; what is
            read is 3 or 0.5 everywhere. The autograd engine does not run without a driver.
    """
    waits = _Waits(device)
    stream = mock.Mock(synchronize=lambda: waits.found("synchronize"))
    with (
        mock.patch.object(FakeTensor, "tolist", Tensor.tolist),  # not element by element
        FakeTensorMode(allow_non_fake_inputs=True) if device == "cuda" else nullcontext(),
        mock.patch("torch.cuda.current_stream", return_value=stream),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        _Functions(waits),
        _Operations(waits),
    ):
        yield waits.places


class _Waits:
    def __init__(self, device: str) -> None:
        self.device = device
        self.places: list[str] = []
        self.pinned: list[Tensor] = []

    def found(self, operation: str) -> None:
        frame = sys._getframe(1)
        while not Path(frame.f_code.co_filename).is_relative_to(PACKAGE) and frame.f_back is not None:
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        place = f"{path.relative_to(PACKAGE)}:{frame.f_lineno}" if path.is_relative_to(PACKAGE) else "elsewhere"
        self.places.append(f"{place} {operation}")

    def read(self, tensor: Tensor) -> float:
        return 0.5 if tensor.is_floating_point() else 3

    def copies(self, source: Tensor, target: torch.device, non_blocking: bool) -> bool:
        """Whether the copy waits. To the host, one that is non_blocking does not: what waits is the synchronization
        that must follow."""
        if (source.device.type == "cuda") == (target.type == "cuda"):
            return False
        is_pinned = source.device.type == "cuda" or any(source is other for other in self.pinned)
        return not (non_blocking and is_pinned)


class _Functions(TorchFunctionMode):
    """What does not reach the dispatcher."""

    def __init__(self, waits: _Waits) -> None:
        self.waits = waits

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.tolist, Tensor.numpy) and args[0].device.type == self.waits.device:
            self.waits.found(func.__name__)
            if self.waits.device == "cuda":
                return [self.waits.read(args[0])] * len(args[0])
        if func is Tensor.pin_memory:
            self.waits.pinned.append(args[0])
            return args[0]
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, waits: _Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._waits(func, args, kwargs):
            self.waits.found(str(func))
            if func in SCALARS and self.waits.device == "cuda":
                return self.waits.read(args[0])
        return func(*args, **kwargs)

    def _waits(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if func is aten._to_copy.default:
            target = torch.device(kwargs.get("device") or args[0].device)
            return self.waits.copies(args[0], target, kwargs.get("non_blocking", False))
        if func is aten.copy_.default:
            return self.waits.copies(args[1], args[0].device, args[2] if len(args) > 2 else False)
        if not any(isinstance(arg, Tensor) and arg.device.type == self.waits.device for arg in args):
            return False
        if func in INDEXED:
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype == torch.bool or index.device.type != self.waits.device for index in indices)
        return func in SCALARS | SIZE_DEPENDS_ON_VALUES or func is aten.equal.default
