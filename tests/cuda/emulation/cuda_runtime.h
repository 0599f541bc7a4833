// The part of CUDA that kernels see, for a CPU: with this folder first on the include path, `g++ -x c++`
// compiles .cu files as they are. See README.md for what is emulated and how to launch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
// One block runs at a time. Like registers and unlike dynamic shared memory, it is not filled with NaN.
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// Vector types, with CUDA's alignment.
#define EMULATION_VECTOR(T, name, alignment)                         \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                 \
  struct name##3 { T x, y, z; };                                     \
  struct alignas(alignment) name##4 { T x, y, z, w; };               \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATION_VECTOR(int8_t, char, 4)
EMULATION_VECTOR(uint8_t, uchar, 4)
EMULATION_VECTOR(int16_t, short, 8)
EMULATION_VECTOR(uint16_t, ushort, 8)
EMULATION_VECTOR(int32_t, int, 16)
EMULATION_VECTOR(uint32_t, uint, 16)
EMULATION_VECTOR(float, float, 16)
EMULATION_VECTOR(long long, longlong, 16)
EMULATION_VECTOR(unsigned long long, ulonglong, 16)
EMULATION_VECTOR(double, double, 16)
#undef EMULATION_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the thread that runs. One launch runs at a time in a process.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

// Runs `kernel` once for every thread of every block; returns when all are done. `shared` bytes of dynamic
// shared memory, all bits set (NaN) when a block begins. Throws std::runtime_error for a deadlock or a broken
// rule, and what a thread threw.
void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& kernel);

// The dynamic shared memory of the running block: what `extern __shared__ char name[]` is in CUDA.
void* dynamic_shared();
bool in_dynamic_shared(const void* address);

// An address of four floats that no GPU could add to at once is an error.
void check_four(const void* address);

// Checks what the compiler may assume.
void check_assumption(bool holds, const char* condition);

// 0: threads and blocks run in order. Otherwise: in an order drawn from this seed, new at every turn,
// and an atomic operation may give way to other threads.
void set_schedule(uint64_t seed);

// Lets other threads run at this point, in a drawn schedule now and then.
void give_way();

// One round of communication between the lanes of `mask`, the caller included.
struct Round {
  uint32_t present;     // lanes that took part; the others of the mask had returned from the kernel
  uint64_t values[32];  // what each of them brought
  char wide[32][48];    // the same where it is longer
};
enum class Meeting {
  sync,
  shuffle,
  shuffle_xor,
  shuffle_down,
  shuffle_up,
  vote,
  match,
  reduce,
  mma,
  mma_of_8,
  ldmatrix,
  ldmatrix_trans
};
const Round& exchange(Meeting at, uint32_t mask, uint64_t value, const void* wide = nullptr,
                      size_t bytes = 0);
int lane();

// Tensor cores (tensor_cores.cpp), for a whole warp; csrc/common/mma.cuh defines the layouts. `fragments`:
// the lane's numbers of a0, a1, a2, a3, b0, b1, two each.
void mma_16x8x16(float (&d)[4], const float (&fragments)[12]);
void mma_16x8x8(float (&d)[4], const float (&fragments)[6]);  // a0, a1, b0
void load_matrix_x4(uint32_t (&r)[4], const void* row, bool transposed);

// Ends the launch with an exception that names the running thread.
[[noreturn]] void broken(const std::string& message);

enum class Reduce { none, any, all, count };
int barrier(Reduce how, bool predicate);  // of the block

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The value that a lane reads from another. Of a lane that took no part CUDA promises nothing: all bits set
// here.
template <class T>
T read(const Round& round, int from) {
  return from_bits<T>(round.present >> from & 1 ? round.values[from] : ~uint64_t{0});
}

template <class T, class Update>
T atomic(T* address, Update update) {
  give_way();
  const T before = *address;
  *address = update(before);
  return before;
}

template <class T, class Combine>
T reduce(uint32_t mask, T value, Combine combine) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  const Round& round = exchange(Meeting::reduce, mask, to_bits(value));
  bool first = true;
  T result{};
  for (int i = 0; i < 32; ++i) {
    if (!(round.present >> i & 1)) continue;
    result = first ? read<T>(round, i) : combine(result, read<T>(round, i));
    first = false;
  }
  return result;
}

// The result of an approximate instruction for `argument`: `exact`, wrong by as much as is documented, up or
// down by the argument's bits. Subnormal results are 0.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float approximate(float argument, float exact, float relative, float absolute) {
  const float error = exact * relative + absolute;
  const bool up = static_cast<uint32_t>(to_bits(argument)) * 0x9e3779b9u >> 31;
  return std::isfinite(exact) ? flush(exact + (up ? error : -error)) : exact;
}

}  // namespace emulation

// Barriers and fences.
inline void __syncthreads() { emulation::barrier(emulation::Reduce::none, false); }
inline int __syncthreads_or(int p) { return emulation::barrier(emulation::Reduce::any, p != 0); }
inline int __syncthreads_and(int p) { return emulation::barrier(emulation::Reduce::all, p != 0); }
inline int __syncthreads_count(int p) { return emulation::barrier(emulation::Reduce::count, p != 0); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  emulation::exchange(emulation::Meeting::sync, mask, 0);
}
inline void __threadfence() { emulation::give_way(); }
inline void __threadfence_block() { emulation::give_way(); }

// Shuffles, votes and reductions of a warp.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  const int first = emulation::lane() & ~(width - 1);
  return emulation::read<T>(emulation::exchange(emulation::Meeting::shuffle, mask, emulation::to_bits(value)),
                            first + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
  const int lane = emulation::lane(), from = lane ^ bits, end = (lane & ~(width - 1)) + width;
  return emulation::read<T>(
      emulation::exchange(emulation::Meeting::shuffle_xor, mask, emulation::to_bits(value)),
      from < end ? from : lane);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
  const int lane = emulation::lane(), from = lane + static_cast<int>(delta),
            end = (lane & ~(width - 1)) + width;
  return emulation::read<T>(
      emulation::exchange(emulation::Meeting::shuffle_down, mask, emulation::to_bits(value)),
      from < end ? from : lane);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
  const int lane = emulation::lane(), from = lane - static_cast<int>(delta), first = lane & ~(width - 1);
  return emulation::read<T>(
      emulation::exchange(emulation::Meeting::shuffle_up, mask, emulation::to_bits(value)),
      from >= first ? from : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  const emulation::Round& round = emulation::exchange(emulation::Meeting::vote, mask, predicate != 0);
  uint32_t ballot = 0;
  for (int i = 0; i < 32; ++i)
    ballot |= (round.present >> i & 1 ? static_cast<uint32_t>(round.values[i]) : 0u) << i;
  return ballot;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value) {
  const emulation::Round& round =
      emulation::exchange(emulation::Meeting::match, mask, emulation::to_bits(value));
  uint32_t equal = 0;
  for (int i = 0; i < 32; ++i)
    equal |= uint32_t{(round.present >> i & 1) && round.values[i] == emulation::to_bits(value)} << i;
  return equal;
}
template <class T>
T __reduce_add_sync(uint32_t mask, T v) {
  return emulation::reduce(mask, v, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_min_sync(uint32_t mask, T v) {
  return emulation::reduce(mask, v, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T __reduce_max_sync(uint32_t mask, T v) {
  return emulation::reduce(mask, v, [](T a, T b) { return a < b ? b : a; });
}

// Atomics. Threads of a launch share one OS thread, so plain updates are atomic; what they lack is an order.
template <class T>
T atomicAdd(T* to, T v) {
  return emulation::atomic(to, [v](T x) { return static_cast<T>(x + v); });
}
// In global memory, subnormal float32 operands and sums become zero, whatever the compiler's flags (PTX ISA,
// red and atom; REDG.E.ADD.F32.FTZ in machine code). In shared memory they do not, and no float64 does.
inline float atomicAdd(float* to, float v) {
  if (emulation::in_dynamic_shared(to)) return atomicAdd<float>(to, v);
  const auto flush = [](float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; };
  return emulation::atomic(to, [=](float x) { return flush(flush(x) + flush(v)); });
}
// From sm_90 on, in global memory. Only each element is atomic.
inline float4 atomicAdd(float4* to, float4 v) {
  emulation::check_four(to);
  float* const first = &to->x;
  return {atomicAdd(first, v.x), atomicAdd(first + 1, v.y), atomicAdd(first + 2, v.z),
          atomicAdd(first + 3, v.w)};
}
template <class T>
T atomicSub(T* to, T v) {
  return emulation::atomic(to, [v](T x) { return static_cast<T>(x - v); });
}
template <class T>
T atomicMin(T* to, T v) {
  return emulation::atomic(to, [v](T x) { return v < x ? v : x; });
}
template <class T>
T atomicMax(T* to, T v) {
  return emulation::atomic(to, [v](T x) { return x < v ? v : x; });
}
template <class T>
T atomicAnd(T* to, T v) {
  return emulation::atomic(to, [v](T x) { return x & v; });
}
template <class T>
T atomicOr(T* to, T v) {
  return emulation::atomic(to, [v](T x) { return x | v; });
}
template <class T>
T atomicXor(T* to, T v) {
  return emulation::atomic(to, [v](T x) { return x ^ v; });
}
template <class T>
T atomicExch(T* to, T v) {
  return emulation::atomic(to, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* to, T expected, T v) {
  return emulation::atomic(to, [=](T x) { return x == expected ? v : x; });
}

// Static shared memory counts as global: its address does not show where it is.
inline bool __isGlobal(const void* address) { return !emulation::in_dynamic_shared(address); }
#define __builtin_assume(condition) emulation::check_assumption(condition, #condition)

// Loads and stores with a cache hint.
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}

// Numbers and bits.
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<uint32_t>(x)) : 32; }
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
// Byte i of the result is the byte of y:x whose number bits 4i to 4i + 2 of the selector are. nvcc masks bit
// 4i + 3, which would replicate a sign in the instruction (PRMT).
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 32; i += 8) {
    result |= static_cast<uint32_t>(bytes >> 8 * (selector & 7) & 0xff) << i;
    selector >>= 4;
  }
  return result;
}
inline uint32_t __float_as_uint(float x) { return emulation::from_bits<uint32_t>(emulation::to_bits(x)); }
inline int32_t __float_as_int(float x) { return emulation::from_bits<int32_t>(emulation::to_bits(x)); }
inline float __uint_as_float(uint32_t x) { return emulation::from_bits<float>(emulation::to_bits(x)); }
inline float __int_as_float(int32_t x) { return emulation::from_bits<float>(emulation::to_bits(x)); }
inline long long __double_as_longlong(double x) {
  return emulation::from_bits<long long>(emulation::to_bits(x));
}
inline double __longlong_as_double(long long x) {
  return emulation::from_bits<double>(emulation::to_bits(x));
}
inline long long __float2ll_rn(float x) { return llrintf(x); }
inline long long __double2ll_rn(double x) { return llrint(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
// Conversions to 32 bits: what does not fit becomes the nearest number that does, NaN zero.
inline int32_t __float2int_rd(float x) {
  return static_cast<int32_t>(std::fmin(std::fmax(std::floor(x == x ? x : 0.0f), -0x1p31), 2147483647.0));
}
inline int32_t __float2int_rn(float x) { return __float2int_rd(std::rint(x)); }
inline int32_t __float2int_rz(float x) { return __float2int_rd(std::trunc(x)); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// A device assertion ends the launch with an exception.
[[noreturn]] void emulation_trap();
inline void __trap() { emulation_trap(); }
