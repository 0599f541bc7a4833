"""COCO average precision of a model, its curves, thresholds and errors."""
