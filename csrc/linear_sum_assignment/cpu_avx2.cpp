// AVX2, FMA and F16C.
#define DINO_CPU_VARIANT avx2
#define DINO_VECTOR_BYTES 32
#include "cpu_kernel.h"
