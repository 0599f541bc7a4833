"""Files in COCO format: read, checked, indexed."""
