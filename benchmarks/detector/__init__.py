"""Measure whole detectors: their speed with and without our kernels, memory, precision, export."""
