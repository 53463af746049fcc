"""From files to batches: readers, transforms, splits and COCO conversion. Knows no network."""

from maskrcnn.data.sample import Batch, Sample, collate

__all__ = ["Batch", "Sample", "collate"]
