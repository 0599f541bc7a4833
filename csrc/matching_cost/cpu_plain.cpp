// The baseline of the architecture: SSE2 on x86-64, NEON on Arm.
#define DINO_CPU_VARIANT plain
#define DINO_VECTOR_BYTES 16
#include "cpu_kernel.h"
