// Which of the instruction sets that the CPU kernels are compiled for runs them.
//
// An op's cpu.h declares its table of kernels in every variant; its cpu.cpp takes
// `widest(DINO_CPU_VARIANTS(name))`. Nothing here is inline: the headers that a variant includes must not
// have code that the linker could share.
#pragma once

#include <cstdint>

#if defined(DINO_KERNELS_X86)
#define DINO_DECLARE_CPU_VARIANTS(Kernels, name) \
  namespace plain {                              \
  extern const Kernels name;                     \
  }                                              \
  namespace avx2 {                               \
  extern const Kernels name;                     \
  }                                              \
  namespace avx512 {                             \
  extern const Kernels name;                     \
  }
// Narrowest first.
#define DINO_CPU_VARIANTS(name) {&plain::name, &avx2::name, &avx512::name}
#else
#define DINO_DECLARE_CPU_VARIANTS(Kernels, name) \
  namespace plain {                              \
  extern const Kernels name;                     \
  }
#define DINO_CPU_VARIANTS(name) {&plain::name}
#endif

namespace dino_kernels {

// The widest variant that this processor has: its place in DINO_CPU_VARIANTS.
int64_t widest_variant();

// Its name: "avx512", "avx2" or "plain".
const char* cpu_capability();

}  // namespace dino_kernels
