"""A page about an evaluation: curves, thresholds, errors by class and kind, and the worst images."""
