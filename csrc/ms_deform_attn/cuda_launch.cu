// Selects the kernel of a call and the number of threads. Compiled once per dtype of value, DINO_VALUE.

#include "cuda_backward_mma.cuh"
#include "cuda_calls.h"
#include "cuda_forward_mma.cuh"

namespace dino_kernels {

// A row of one head is 64 or 128 bytes: 32 channels, as in nearly all models.
constexpr int kCommonChannels = 32;

// True if every row of a head begins at a multiple of 16 bytes and has a multiple of that length.
template <class T>
bool rows_aligned(const CudaParams& p, const Rows& rows) {
  const int64_t unit = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && p.D % unit == 0 &&
         rows.batch_stride % unit == 0 && rows.row_stride % unit == 0;
}

// Too few items to occupy the device with one group each: then several groups share an item. The limit, half
// of the 2048 threads of a multiprocessor, is a guess, not tuned on hardware.
inline bool is_small(const CudaParams& p, int group, const DeviceFacts& facts) {
  return p.B * p.Q * p.M * group <= int64_t{1024} * facts.multiprocessors;
}

// Lanes for the channels of any row: a power of two, at most a warp.
inline int group_for(int64_t channels, int per_lane) {
  int group = 1;
  while (group < 32 && int64_t{group} * per_lane < channels) group *= 2;
  return group;
}

// Whether the kernels with tensor cores support a call: the requirements of cuda_pairs.cuh.
template <class T>
bool fits_pairs(const CudaParams& p) {
  const auto fits = [](const Rows& rows, int64_t bytes) {
    return rows.row_stride >= 0 && rows.row_stride * bytes <= int64_t{UINT32_MAX};
  };
  const auto raw_bytes = [](bool as_value) { return as_value ? sizeof(T) : sizeof(float); };
  return p.K <= 2 * kPairSamples && p.Q < INT32_MAX && p.pairs_aligned && fits(p.value, sizeof(T)) &&
         fits(p.grad_output, sizeof(T)) && fits(p.positions, raw_bytes(p.positions_as_value)) &&
         fits(p.weights, raw_bytes(p.weights_as_value)) && p.M * p.D * 8 <= int64_t{UINT32_MAX};
}

// Sets up a grid with `items` consecutive queries of one head per block; returns the number of blocks.
inline int64_t blocks_for(CudaParams& p, int items) {
  const int64_t per_head = (p.Q + items - 1) / items;
  p.blocks_per_head = static_cast<uint32_t>(per_head);
  return p.B * p.M * per_head;
}

template <class T, int V, int kGroup, int kSplit, bool kFused>
void start_forward(CudaParams p, const CudaLaunch& where) {
  constexpr int threads = kForwardThreads<kSplit>;
  if (!kGroup) p.group = group_for(p.D, V);
  Carver measure{nullptr};
  const ForwardShared<typename Compute<T>::type> shared(measure, p, threads);
  const int lanes = (kGroup ? kGroup : p.group) * kSplit;
  launch({where.op, blocks_for(p, threads / lanes), threads, measure.used}, where.device,
         &forward_kernel<T, V, kGroup, kSplit, kFused>, p);
}

template <class T, bool kFused>
void start_forward_mma(CudaParams p, const CudaLaunch& where) {
  constexpr int kOne = kPairSamples, kTwo = 2 * kPairSamples;
  Carver measure{nullptr};
  const ForwardPairs shared(measure, p);
  auto* kernel = &forward_mma_kernel<T, kFused, kTwo, kFused>;
  if (p.K == kOne && p.value_mask) kernel = &forward_mma_kernel<T, kFused, kOne, kFused>;
  if (p.K == kOne && !p.value_mask) kernel = &forward_mma_kernel<T, kFused, kOne, false>;
  launch({where.op, blocks_for(p, kBlockItems), kPairThreads, measure.used}, where.device, kernel, p);
}

template <class T, bool kFused, int kSamples, ValueSums kSums>
bool start_backward_mma(CudaParams p, const CudaLaunch& where) {
  constexpr bool kTiles = kSums == ValueSums::tile;
  Carver measure{nullptr};
  const BackwardPairs shared(measure, p, kSamples);
  [[maybe_unused]] const auto tile = tile_sums<T, kTiles>(measure, p, kSamples);
  if (kTiles && measure.used > where.facts.shared_bytes) return false;
  launch({where.op, blocks_for(p, kBlockItems), kPairThreads, measure.used}, where.device,
         &backward_mma_kernel<T, kFused, kSamples, kSums>, p);
  return true;
}

template <class T, bool kFused>
void choose_backward_mma(const CudaParams& p, const CudaLaunch& where) {
  constexpr int kOne = kPairSamples, kTwo = 2 * kPairSamples;
  if (p.bound) {
    start_backward_mma<T, kFused, kTwo, ValueSums::fixed_point>(p, where);
  } else if (p.K != kOne) {
    start_backward_mma<T, kFused, kTwo, ValueSums::scatter>(p, where);
  } else if (!p.queries_on_grid || !p.sums ||
             !start_backward_mma<T, kFused, kOne, ValueSums::tile>(p, where)) {
    start_backward_mma<T, kFused, kOne, ValueSums::scatter>(p, where);
  }
}

template <class T, int V, int kGroup, int kSplit, bool kFused, bool kFixed>
void start_backward(CudaParams p, const CudaLaunch& where) {
  int threads = kBackwardThreads<kSplit>;
  if (!kGroup) p.group = group_for(p.D, V);
  int64_t bytes = 0;
  int lanes = 0;
  const auto measure = [&] {
    lanes = (kGroup ? kGroup : p.group) * kSplit;
    Carver carver{nullptr};
    const BackwardShared<typename Compute<T>::type> shared(carver, p, threads,
                                                           static_cast<int>((p.K + lanes - 1) / lanes));
    bytes = carver.used;
  };
  measure();
  // Hundreds of samples per head: their state fits only with fewer threads, or with more lanes per item.
  for (; bytes > where.facts.shared_bytes && threads > 32; measure()) threads /= 2;
  for (; bytes > where.facts.shared_bytes && !kGroup && p.group < 32; measure()) p.group *= 2;
  STD_TORCH_CHECK(bytes <= where.facts.shared_bytes, where.op, ": K = ", p.K,
                  " samples per head need more shared memory than this GPU has; use fewer");
  launch({where.op, blocks_for(p, threads / lanes), threads, bytes}, where.device,
         &backward_kernel<T, V, kGroup, kSplit, kFused, kFixed>, p);
}

template <class T, bool kFused>
void choose_forward(const CudaParams& p, const CudaLaunch& where) {
  if constexpr (sizeof(T) <= 4) {
    constexpr int kVector = 16 / sizeof(T), kGroup = kCommonChannels / kVector;
    if (rows_aligned<T>(p, p.value)) {
      if (p.D != kCommonChannels) return start_forward<T, kVector, 0, 1, kFused>(p, where);
      if (!is_small(p, kGroup, where.facts)) {
        if constexpr (sizeof(T) == 4) return start_forward<T, kVector, kGroup, 1, kFused>(p, where);
        if constexpr (sizeof(T) == 2) {
          if (fits_pairs<T>(p)) return start_forward_mma<T, kFused>(p, where);
          return start_forward<T, kVector, 0, 1, kFused>(p, where);
        }
      }
      return start_forward<T, kVector, kGroup, kVector, kFused>(p, where);
    }
  }
  start_forward<T, 1, 0, 1, kFused>(p, where);
}

template <class T, bool kFused>
void choose_backward(const CudaParams& p, const CudaLaunch& where) {
  if constexpr (sizeof(T) <= 4) {
    constexpr int kVector = 16 / sizeof(T), kGroup = kCommonChannels / kVector;
    if (rows_aligned<T>(p, p.value) && rows_aligned<T>(p, p.grad_output)) {
      if (p.D != kCommonChannels) return start_backward<T, kVector, 0, 1, kFused, true>(p, where);
      if (!p.bound && is_small(p, kGroup, where.facts)) {
        return start_backward<T, kVector, kGroup, kVector, kFused, false>(p, where);
      }
      if constexpr (sizeof(T) == 2) {
        if (fits_pairs<T>(p)) return choose_backward_mma<T, kFused>(p, where);
        return start_backward<T, kVector, 0, 1, kFused, true>(p, where);
      }
      if constexpr (sizeof(T) == 4) {
        if (p.bound) return start_backward<T, kVector, kGroup, 1, kFused, true>(p, where);
        return start_backward<T, kVector, kGroup, 1, kFused, false>(p, where);
      }
    }
  }
  start_backward<T, 1, 0, 1, kFused, true>(p, where);
}

template <>
void launch_forward<DINO_VALUE>(const CudaParams& p, const CudaLaunch& where) {
  p.reference_points ? choose_forward<DINO_VALUE, true>(p, where)
                     : choose_forward<DINO_VALUE, false>(p, where);
}

template <>
void launch_backward<DINO_VALUE>(const CudaParams& p, const CudaLaunch& where) {
  p.reference_points ? choose_backward<DINO_VALUE, true>(p, where)
                     : choose_backward<DINO_VALUE, false>(p, where);
}

template <>
void launch_finish<DINO_VALUE>(const CudaParams& p, const CudaLaunch& where) {
  constexpr int kBlocksEach = 8;
  launch({where.op, int64_t{where.facts.multiprocessors} * kBlocksEach, kFinishThreads, 0}, where.device,
         &finish_kernel<DINO_VALUE>, p);
}

}  // namespace dino_kernels
