// PyTorch's current CUDA stream, through its stable interface.
//
// aoti_torch_get_current_cuda_stream is only in libtorch_cuda.so. This library must also load beside a CPU
// build of torch, so it does not link to that file; and torch loads its files with local symbols, so a weak
// reference would stay null. Hence the symbol is looked up in the loaded file.
#pragma once

#include <dlfcn.h>

#include <atomic>
#include <cstdint>

namespace dino_kernels {

// Writes the stream of a device; returns 0 on success.
using CurrentStream = int32_t (*)(int32_t device, void** stream);

constexpr const char* kNoCurrentStream =
    "the loaded libtorch_cuda.so has no aoti_torch_get_current_cuda_stream, or none is loaded: "
    "install a CUDA build of torch 2.10 or newer";

// Null if there is none. Cached once found.
inline CurrentStream find_current_stream() {
  static std::atomic<CurrentStream> found{nullptr};
  CurrentStream function = found.load(std::memory_order_relaxed);
  if (function != nullptr) return function;
  if (void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
    function = reinterpret_cast<CurrentStream>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
    dlclose(torch_cuda);  // NOLOAD counts as one more user
  }
  found.store(function, std::memory_order_relaxed);
  return function;
}

}  // namespace dino_kernels
