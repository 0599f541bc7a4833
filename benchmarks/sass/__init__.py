"""Execute compiled GPU machine code on a CPU, and count its instructions and memory accesses."""
