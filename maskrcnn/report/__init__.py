"""The report: one page with scores, histograms and a gallery of pictures with outlines."""
