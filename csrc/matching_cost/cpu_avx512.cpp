// AVX-512 F, BW, DQ and VL.
#define DINO_CPU_VARIANT avx512
#define DINO_VECTOR_BYTES 64
#include "cpu_kernel.h"
