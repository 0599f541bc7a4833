"""COCO average precision of a model."""
