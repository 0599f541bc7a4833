// The kernels for float16 values.
#include "cuda_launch.cuh"

DINO_COMPILE_MS_DEFORM_ATTN(Half)
