"""From files to batches: readers, label planes, transforms, splits and COCO conversion. Knows no network."""

from maskrcnn.data.labels import InstanceLabels
from maskrcnn.data.sample import Batch, Sample, collate

__all__ = ["Batch", "InstanceLabels", "Sample", "collate"]
