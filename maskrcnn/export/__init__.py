"""From cells to files: label images, outlines, tables, overlays, COCO results and the report."""
