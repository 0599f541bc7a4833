"""Read, check and index files in COCO format."""
