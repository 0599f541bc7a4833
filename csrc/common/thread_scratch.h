// Aligned scratch memory of a thread.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace dino_kernels {

struct AlignedDelete {
  void operator()(char* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};

using AlignedMemory = std::unique_ptr<char, AlignedDelete>;
inline AlignedMemory aligned_memory(int64_t bytes) {
  return AlignedMemory(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})));
}

// Scratch memory of one thread. Up to a limit it is kept for the thread's next call, because fresh pages cost
// more than the work of a small problem.
class ThreadScratch {
 public:
  explicit ThreadScratch(int64_t bytes) {
    constexpr int64_t kMostKept = int64_t{8} << 20;
    if (bytes > kMostKept) {
      own_ = aligned_memory(bytes);
      memory_ = own_.get();
      return;
    }
    thread_local AlignedMemory kept;
    thread_local int64_t kept_bytes = 0;
    if (kept_bytes < bytes) {
      kept_bytes = 0;
      kept = aligned_memory(bytes);
      kept_bytes = bytes;
    }
    memory_ = kept.get();
  }
  char* get() const { return memory_; }

 private:
  AlignedMemory own_;
  char* memory_;
};

}  // namespace dino_kernels
