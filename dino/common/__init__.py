"""Devices, processes, random generators, files, progress and text: used by several rooms."""
