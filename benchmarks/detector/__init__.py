"""Measure whole detectors: their speed with and without our kernels, and DINO's ablation."""
