#include "cpu_capability.h"

#include <cstdlib>
#include <string_view>

namespace dino_kernels {
namespace {

// Detected at run time, because a wheel may run on another machine than it was built on. PyTorch's own
// variable ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers the choice.
int64_t choose_widest() {
#if defined(DINO_KERNELS_X86)
  const char* capability = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view wanted = capability ? capability : "avx512";
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  if (has_avx512 && wanted != "avx2" && wanted != "default") return 2;
  if (has_avx2 && wanted != "default") return 1;
#endif
  return 0;
}

}  // namespace

int64_t widest_variant() {
  static const int64_t widest = choose_widest();
  return widest;
}

const char* cpu_capability() {
  constexpr const char* kNames[] = {"plain", "avx2", "avx512"};
  return kNames[widest_variant()];
}

}  // namespace dino_kernels
