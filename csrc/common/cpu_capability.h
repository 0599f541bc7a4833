// Selects the instruction set for the CPU kernels, which are compiled for several.
//
// An op's cpu.h declares its table of kernels in every variant; its cpu.cpp uses
// `widest(DINO_CPU_VARIANTS(name))`. Nothing here is inline: headers included by a variant must not contain
// code that the linker could share.
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

// The widest variant that this processor supports: its index in DINO_CPU_VARIANTS.
int64_t widest_variant();

// Its name: "avx512", "avx2" or "plain".
const char* cpu_capability();

}  // namespace dino_kernels
