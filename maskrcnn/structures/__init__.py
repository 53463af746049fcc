"""What the packages pass to each other: true cells, detected cells, and their masks as run lengths.

Nothing here knows a file or a network.
"""

from maskrcnn.structures.detections import Detections
from maskrcnn.structures.instance_labels import InstanceLabels

__all__ = ["Detections", "InstanceLabels"]
