"""Data structures that the packages share: ground-truth instances, detections, and masks as RLE.

Nothing here depends on files or networks.
"""

from maskrcnn.structures.cells import Cells
from maskrcnn.structures.detections import Detections
from maskrcnn.structures.instance_labels import InstanceLabels

__all__ = ["Cells", "Detections", "InstanceLabels"]
