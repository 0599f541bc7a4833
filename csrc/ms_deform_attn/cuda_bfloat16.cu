// The kernels for bfloat16 values.
#include "cuda_launch.cuh"

DINO_COMPILE_MS_DEFORM_ATTN(BFloat16)
