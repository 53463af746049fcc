"""From files to batches: readers, data sets, transforms, splits and COCO conversion; independent of the network."""

from maskrcnn.data.sample import Batch, Sample, collate

__all__ = ["Batch", "Sample", "collate"]
