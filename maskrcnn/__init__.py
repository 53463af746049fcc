"""Mask R-CNN from scratch, for pictures full of cells."""

from maskrcnn.errors import InputError

__version__ = "0.1.0"
__all__ = ["InputError"]
