// The kernels for float64 values.
#include "cuda_launch.cuh"

DINO_COMPILE_MS_DEFORM_ATTN(double)
