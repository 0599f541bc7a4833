"""Measure speed, memory and growth of the kernels beside every installed peer; see README.md."""
