// Tasks over ATen's threads, with aligned scratch memory per thread.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
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

// Calls work(begin, end, scratch) on ranges of at least `grain` tasks, for tasks of equal duration.
template <class Work>
void run_ranges(int64_t tasks, int64_t grain, int64_t scratch_bytes, const Work& work) {
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    if (begin == end) return;
    const ThreadScratch scratch(scratch_bytes);
    work(begin, end, scratch.get());
  });
}

// Calls work(task, scratch) for each task, on at most `threads` threads. Each thread takes the next task when
// it has finished one, so that a few long tasks do not delay the others.
template <class Work>
void run_each(int64_t tasks, int64_t threads, int64_t scratch_bytes, const Work& work) {
  threads = std::min({threads, tasks, int64_t{torch::stable::get_num_threads()}});
  if (tasks == 0) return;
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::max<int64_t>(threads, 1), 1, [&](int64_t, int64_t) {
    const ThreadScratch scratch(scratch_bytes);
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      work(task, scratch.get());
  });
}

}  // namespace dino_kernels
