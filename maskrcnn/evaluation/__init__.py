"""From cells and ground truth to scores, and the thresholds fitted on them."""
