"""Mask R-CNN from scratch, for pictures full of cells.

>>> import maskrcnn  # doctest: +SKIP
>>> model = maskrcnn.load("runs/first/best.pt")  # doctest: +SKIP
>>> cells = model("picture.tif")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from maskrcnn.errors import InputError

if TYPE_CHECKING:
    from maskrcnn.data.picture import open_pictures
    from maskrcnn.export.overlay import draw_overlay
    from maskrcnn.model import MaskRCNN, mask_rcnn_resnet50_fpn
    from maskrcnn.ops import build_info
    from maskrcnn.predict.load import load
    from maskrcnn.predict.predictor import Predictor
    from maskrcnn.structures import Detections

try:
    __version__ = importlib.metadata.version("maskrcnn")  # that of pyproject.toml when the package was installed
except importlib.metadata.PackageNotFoundError:
    __version__ = "not installed"

# Imported on first use, so that `import maskrcnn.ops` needs nothing but PyTorch and numpy.
_MODULES = {
    "Detections": "maskrcnn.structures",
    "MaskRCNN": "maskrcnn.model",
    "Predictor": "maskrcnn.predict.predictor",
    "build_info": "maskrcnn.ops",
    "draw_overlay": "maskrcnn.export.overlay",
    "load": "maskrcnn.predict.load",
    "mask_rcnn_resnet50_fpn": "maskrcnn.model",
    "open_pictures": "maskrcnn.data.picture",
}
__all__ = [
    "Detections",
    "InputError",
    "MaskRCNN",
    "Predictor",
    "build_info",
    "draw_overlay",
    "load",
    "mask_rcnn_resnet50_fpn",
    "open_pictures",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'maskrcnn' has no attribute {name!r}")
