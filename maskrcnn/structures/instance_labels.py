"""Ground-truth instances as integer label planes.

A stack of masks [N, H, W] takes memory in proportion to cells times pixels. A label plane [H, W] holds all cells of a
class, as label files do, so an image with 500 cells takes no more than one with five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


@dataclass(frozen=True)
class InstanceLabels:
    """The ground-truth instances of one image: which pixels each cell has, its class, box and area.

    The pixels of instance ``i`` are those where ``planes[plane[i]] == ids[i]``, in one or several connected parts.
    Overlapping instances are in different planes. After :meth:`select`, planes also hold values of instances that were
    not selected; these count as background.

    Attributes:
        planes: int32 [P, H, W]; 0 is background, other values are ids of instances of that plane.
        plane: int64 [N], the plane of each instance.
        ids: int64 [N], the value of each instance in its plane.
        classes: int64 [N], 1..K.
        boxes: float32 [N, 4], the tight box (x0, y0, x1, y1) in pixels; pixel i covers [i, i+1).
        areas: int64 [N], in pixels.
    """

    planes: Tensor
    plane: Tensor
    ids: Tensor
    classes: Tensor
    boxes: Tensor
    areas: Tensor

    @classmethod
    def from_planes(cls, planes: Tensor, plane_classes: Sequence[int]) -> InstanceLabels:
        """Make one instance of every nonzero value of every plane; ordered by plane, then by id.

        Args:
            planes: integer [P, H, W], no negative values; not copied if it is int32 already.
            plane_classes: the class (1..K) of each plane; several planes may have one class.

        Raises:
            ValueError: for a wrong shape or dtype, a negative value, or a wrong number of classes.
        """
        planes = _check_planes(planes)
        if len(plane_classes) != len(planes):
            raise ValueError(f"plane_classes: {len(plane_classes)} classes for {len(planes)} planes")
        found = _measure(planes)
        classes = np.asarray(plane_classes, dtype=np.int64)[found.plane]
        return cls(planes, *map(torch.from_numpy, (found.plane, found.ids, classes, found.boxes, found.areas)))

    @classmethod
    def from_instances(cls, planes: Tensor, plane: Tensor, ids: Tensor, classes: Tensor) -> InstanceLabels:
        """Make instances of the given plane, id and class (int64 [N] each); boxes and areas are measured.

        The order is kept; instances without pixels are left out.
        """
        planes = _check_planes(planes)
        found = _measure(planes)
        found_keys = _key(found.plane, found.ids)
        keys = _key(plane.cpu().numpy(), ids.cpu().numpy())
        position = np.searchsorted(found_keys, keys)
        present = position < len(found_keys)
        present[present] = found_keys[position[present]] == keys[present]
        index = position[present]
        keep = torch.from_numpy(present)
        return cls(
            planes,
            plane.cpu()[keep],
            ids.cpu()[keep],
            classes.cpu()[keep],
            torch.from_numpy(found.boxes[index]),
            torch.from_numpy(found.areas[index]),
        )

    @classmethod
    def empty(cls, height: int, width: int) -> InstanceLabels:
        """An image without cells: no planes [0, H, W], no instances."""
        return cls.from_planes(torch.zeros((0, height, width), dtype=torch.int32), ())

    def with_planes(self, planes: Tensor) -> InstanceLabels:
        """The same instances in transformed planes (after a crop, flip, rotation or nearest-neighbour resize).

        Args:
            planes: integer [P, H', W'] with the same P and the same ids.

        Returns:
            Instances in the same order with boxes and areas measured again; those without pixels are left out.
        """
        if len(planes) != len(self.planes):
            raise ValueError(f"planes: {len(planes)} planes, expected {len(self.planes)}")
        return InstanceLabels.from_instances(planes, self.plane, self.ids, self.classes)

    def select(self, keep: Tensor) -> InstanceLabels:
        """The instances that ``keep`` (bool [N] or int64 indices) selects; the planes are unchanged."""
        return InstanceLabels(
            self.planes, self.plane[keep], self.ids[keep], self.classes[keep], self.boxes[keep], self.areas[keep]
        )

    def padded(self, height: int, width: int) -> InstanceLabels:
        """The same instances with background added at the right and the bottom, up to ``height`` x ``width``."""
        old_height, old_width = self.size
        if (old_height, old_width) == (height, width):
            return self
        if height < old_height or width < old_width:
            raise ValueError(f"padded: {height}x{width} is smaller than {old_height}x{old_width}")
        padding = (0, width - old_width, 0, height - old_height)
        return replace(self, planes=torch.nn.functional.pad(self.planes, padding))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> InstanceLabels:
        """All tensors on ``device``."""
        return InstanceLabels(*(tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()))

    def pin_memory(self) -> InstanceLabels:
        """All tensors in page-locked memory (``DataLoader(pin_memory=True)`` calls this)."""
        return InstanceLabels(*(tensor.pin_memory() for tensor in self._tensors()))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.planes.shape[-2], self.planes.shape[-1]

    def __len__(self) -> int:
        return len(self.ids)

    def median_diameter(self) -> float | None:
        """Median diameter of the instances in pixels, each that of a circle of equal area; None without instances."""
        if len(self) == 0:
            return None
        return float(np.median(2 * np.sqrt(self.areas.cpu().numpy() / np.pi)))

    def mask(self, index: int) -> Tensor:
        """The mask of one instance, bool [H, W]."""
        return self.planes[self.plane[index]] == self.ids[index]

    def to_rle(self) -> list[dict[str, Any]]:
        """Every instance as a COCO RLE dict, ``{"size": [H, W], "counts": bytes}``.

        The bytes are those of ``pycocotools.mask.encode`` on the full mask, but no mask is made: one pass over each
        plane in column order finds the runs of all its instances.
        """
        height, width = self.size
        planes = self.planes.cpu().numpy()
        plane, ids = self.plane.cpu().numpy(), self.ids.cpu().numpy()
        counts: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * len(ids)
        for p in np.unique(plane):
            members = np.flatnonzero(plane == p)
            columns = np.ascontiguousarray(planes[p].T).reshape(-1)
            starts, stops, values = _runs(columns, row=len(columns))
            order = np.argsort(values, kind="stable")
            starts, stops, values = starts[order], stops[order], values[order]
            first = np.searchsorted(values, ids[members], side="left")
            last = np.searchsorted(values, ids[members], side="right")
            for i, a, b in zip(members, first, last, strict=True):
                counts[i] = _counts(starts[a:b], stops[a:b], height * width)
        uncompressed = [{"size": [height, width], "counts": c.tolist()} for c in counts]
        return coco_mask.frPyObjects(uncompressed, height, width) if uncompressed else []

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.planes, self.plane, self.ids, self.classes, self.boxes, self.areas


@dataclass(frozen=True)
class _Measurements:
    """Instances found in planes, ordered by plane, then id: plane, ids and areas int64 [N], boxes float32 [N, 4]."""

    plane: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float32]
    areas: npt.NDArray[np.int64]


def _check_planes(planes: Tensor) -> Tensor:
    if planes.ndim != 3:
        raise ValueError(f"planes: shape {tuple(planes.shape)}, expected [P, H, W]")
    if planes.is_floating_point() or planes.is_complex() or planes.dtype == torch.bool:
        raise ValueError(f"planes: dtype {planes.dtype}, expected an integer type")
    return planes.cpu().to(torch.int32)


def _measure(planes: Tensor) -> _Measurements:
    """Boxes and areas of all values of int32 planes [P, H, W].

    Works on horizontal runs of equal values: there are about ten times fewer runs than pixels, so that sorting them by
    instance is cheap, and no table indexed by id is needed, however large the ids are.
    """
    height, width = planes.shape[-2:]
    starts, stops, values = _runs(np.ascontiguousarray(planes.numpy()).reshape(-1), row=width)
    if len(starts) == 0:
        none = np.empty(0, np.int64)
        return _Measurements(none, none, np.empty((0, 4), np.float32), none)
    if values.min() < 0:
        raise ValueError(f"planes: value {values.min()}, expected no negative values")
    lines, x0 = np.divmod(starts, width)
    plane, y = np.divmod(lines, height)
    key = _key(plane, values)
    order = np.argsort(key, kind="stable")
    key, x0, y, lengths = key[order], x0[order], y[order], (stops - starts)[order]
    first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    last = np.append(first[1:], len(key)) - 1
    # The sort is stable, so the runs of an instance stay in order of y: its first and last run are on its first and
    # last line.
    boxes = np.stack(
        (np.minimum.reduceat(x0, first), y[first], np.maximum.reduceat(x0 + lengths, first), y[last] + 1), axis=1
    )
    return _Measurements(
        key[first] >> 32, key[first] & 0xFFFFFFFF, boxes.astype(np.float32), np.add.reduceat(lengths, first)
    )


def _runs(
    values: npt.NDArray[np.int32], row: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of equal nonzero values in a flat array, cut at every multiple of ``row``: starts, stops, values."""
    change = np.empty(len(values), dtype=bool)
    change[:1] = True
    np.not_equal(values[1:], values[:-1], out=change[1:])
    change[:: max(row, 1)] = True
    starts = np.flatnonzero(change)
    stops = np.append(starts[1:], len(values))
    run_values = values[starts].astype(np.int64)
    nonzero = run_values != 0
    return starts[nonzero], stops[nonzero], run_values[nonzero]


def _key(plane: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """One sortable number per pair (plane, id); ids are int32."""
    return (plane << 32) | ids


def _counts(starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], pixels: int) -> npt.NDArray[np.int64]:
    """COCO's run lengths, background first, of runs [start, stop) in column order."""
    edges = np.empty(2 * len(starts), np.int64)
    edges[0::2], edges[1::2] = starts, stops
    tail = [] if len(edges) and edges[-1] == pixels else [pixels]  # pycocotools writes no empty last run
    return np.diff(edges, prepend=0, append=tail)
