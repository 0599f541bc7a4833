"""The commands of python -m dino."""
