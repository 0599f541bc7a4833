// Tasks over ATen's threads, with aligned scratch memory per thread.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "thread_scratch.h"

namespace dino_kernels {

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
