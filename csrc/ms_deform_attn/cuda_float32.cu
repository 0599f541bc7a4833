// The kernels for float32 values.
#include "cuda_launch.cuh"

DINO_COMPILE_MS_DEFORM_ATTN(float)
