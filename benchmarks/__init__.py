"""Speed, memory and growth of the kernels, next to every peer that is installed; see README.md."""
