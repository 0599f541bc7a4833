"""Reads, checks and executes NVIDIA machine code (SASS) on a CPU, to count what a kernel does without a GPU."""
