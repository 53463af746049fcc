"""The size of a picture's pixels in micrometres, as files give it or ``--pixel-size`` does, and whether it can be."""

from __future__ import annotations

import math
from dataclasses import dataclass

MICROMETRES = {
    "pm": 1e-6,
    "Å": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25400.0,
    "mil": 25.4,
}
"""Micrometres per unit, by the unit's symbol."""

_NAMES = {
    "picometer": "pm",
    "angstrom": "Å",
    "nanometer": "nm",
    "micrometer": "µm",
    "micron": "µm",
    "um": "µm",
    "μm": "µm",  # the Greek letter; OME's is the micro sign
    "\\u00b5m": "µm",  # as ImageJ escapes it
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "inch": "in",
    '"': "in",
}

SMALLEST, LARGEST = 0.0005, 20.0
"""Pixel sizes of microscopes in micrometres: from an electron microscope's to that of a lens below 0.5x. The
resolutions that programs write which do not know one, 72 to 1200 dpi, are 21 to 353 micrometres."""

_SQUARE = 0.01
"""Relative difference of height and width up to which pixels count as square."""


def micrometres_per(unit: str | None) -> float | None:
    """Micrometres per ``unit``, a symbol or an English name; None if it is no unit of length (``pixel``)."""
    name = (unit or "").strip()
    lower = name.lower().removesuffix("s").replace("metre", "meter")
    return MICROMETRES.get(_NAMES.get(lower, name)) or MICROMETRES.get(_NAMES.get(lower, lower))


def given_size(side: float | None) -> PixelSize | None:
    """The pixel size that a user gives as ``--pixel-size``, in micrometres."""
    return None if side is None else PixelSize(side, side, "--pixel-size")


@dataclass(frozen=True)
class PixelSize:
    """Height and width of the pixels in micrometres, not checked.

    Attributes:
        y, x: micrometres.
        source: where it was found, for messages: ``OME``, ``its resolution tags``.
    """

    y: float
    x: float
    source: str

    def problem(self) -> str:
        """Why this cannot be the size of a microscope's pixels, in words for a message; "" if it can."""
        shown = f"{self.x:g} x {self.y:g} micrometres by {self.source}"
        if not all(math.isfinite(side) and side > 0 for side in (self.y, self.x)):
            return f"{shown}, expected more than 0"
        if not all(SMALLEST <= side <= LARGEST for side in (self.y, self.x)):
            return f"{shown}, expected {SMALLEST} to {LARGEST:g}"
        if abs(self.y - self.x) > _SQUARE * max(self.y, self.x):
            return f"{shown}, expected square pixels"
        return ""

    def micrometres(self) -> float | None:
        """The side of a pixel; None if it cannot be used."""
        return None if self.problem() else math.sqrt(self.y * self.x)

    def scaled(self, y: float, x: float) -> PixelSize:
        """That of a copy with pixels ``y`` times as high and ``x`` times as wide."""
        return PixelSize(self.y * y, self.x * x, self.source)
