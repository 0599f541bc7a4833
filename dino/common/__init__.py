"""Devices, processes, random generators and text: what several rooms use."""
