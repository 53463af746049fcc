"""From a picture to the cells in it: their diameter, tiles, test-time augmentation."""
