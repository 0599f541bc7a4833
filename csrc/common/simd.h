// Vectors of DINO_VECTOR_BYTES, in the compiler's own vector extension (GCC and Clang, any architecture).
//
// This header is compiled once per instruction set, into the namespace DINO_CPU_VARIANT. It includes nothing
// with inline functions that the linker could share between those objects: code compiled for AVX-512 must
// never be reached from the plain variant.
#pragma once

#include <cstdint>
#include <utility>

#include "number.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define DINO_INLINE inline __attribute__((always_inline))

namespace dino_kernels::DINO_CPU_VARIANT {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class Lane, int kBytes>
struct VectorOf {
  typedef Lane type __attribute__((vector_size(kBytes)));
};
template <class Lane, int kBytes = DINO_VECTOR_BYTES>
using Vector = typename VectorOf<Lane, kBytes>::type;

// The integers of a vector with as many lanes.
template <class A>
struct IntegerFor;
template <>
struct IntegerFor<float> {
  using type = int32_t;
};
template <>
struct IntegerFor<double> {
  using type = int64_t;
};
template <class A>
using Integer = typename IntegerFor<A>::type;

template <class A>
constexpr int kLanes = DINO_VECTOR_BYTES / static_cast<int>(sizeof(A));

}  // namespace dino_kernels::DINO_CPU_VARIANT

namespace dino_kernels {

#define DINO_NUMBER_VECTOR(A)                                                        \
  template <>                                                                        \
  struct Number<DINO_CPU_VARIANT::Vector<A>> {                                       \
    using Element = A;                                                               \
    using Real = DINO_CPU_VARIANT::Vector<A>;                                        \
    using Int = DINO_CPU_VARIANT::Vector<DINO_CPU_VARIANT::Integer<A>>;              \
    using Mask = Int;                                                                \
    static DINO_INLINE Real from(Int i) { return __builtin_convertvector(i, Real); } \
    static DINO_INLINE Int floor(Real x) {                                           \
      const Int truncated = __builtin_convertvector(x, Int);                         \
      return x < from(truncated) ? truncated - 1 : truncated;                        \
    }                                                                                \
  };
DINO_NUMBER_VECTOR(float)
DINO_NUMBER_VECTOR(double)
#undef DINO_NUMBER_VECTOR

}  // namespace dino_kernels

namespace dino_kernels::DINO_CPU_VARIANT {

template <class A>
DINO_INLINE Vector<A> broadcast(A x) {
  return x - Vector<A>{};  // GCC turns this into one broadcast; x + 0 would lose the sign of -0
}

template <class V>
DINO_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}
template <class V>
DINO_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}
// Stores a vector at an aligned address without reading its cache line, for data that will leave the caches.
template <class V>
DINO_INLINE void stream(void* to, V v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(static_cast<float*>(to), (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(static_cast<float*>(to), (__m256)v);
#else
  store(to, v);
#endif
}
// Orders streamed data before everything that the thread stores later.
DINO_INLINE void finish_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
template <class To, class From>
DINO_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

#if defined(__clang__)
template <class V, int... kIndex>
DINO_INLINE V shuffle(V a, V b, std::integer_sequence<int, kIndex...>) {
  return __builtin_shufflevector(a, b, kIndex...);
}
#else
template <class V, int... kIndex>
DINO_INLINE V shuffle(V a, V b, std::integer_sequence<int, kIndex...>) {
  using Lane = std::remove_reference_t<decltype(a[0])>;
  using Mask = Vector<Integer<Lane>>;
  return __builtin_shuffle(a, b, Mask{kIndex...});
}
#endif

// Lane i becomes lane index[i], which is less than the number of lanes.
template <class V, class Index>
DINO_INLINE V permute(V v, Index index) {
#if defined(__clang__)
  using Lane = std::remove_reference_t<decltype(v[0])>;
  V result;
  for (int i = 0; i < kLanes<Lane>; ++i) result[i] = v[index[i]];
  return result;
#else
  return __builtin_shuffle(v, index);
#endif
}

template <int kBegin, int kStep, int... kIndex>
constexpr auto strided(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (kBegin + kStep * kIndex)...>{};
}

// x0 y0 x1 y1 ... -> x0 x1 ..., y0 y1 ...
template <class V>
DINO_INLINE void deinterleave(V low, V high, V& x, V& y) {
  using Lane = std::remove_reference_t<decltype(low[0])>;
  using Sequence = std::make_integer_sequence<int, kLanes<Lane>>;
  x = shuffle(low, high, strided<0, 2>(Sequence{}));
  y = shuffle(low, high, strided<1, 2>(Sequence{}));
}

template <int kOffset, int kN, int... kIndex>
constexpr auto interleaved(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (kOffset + kIndex / 2 + (kIndex % 2) * kN)...>{};
}
template <class V>
DINO_INLINE void interleave(V x, V y, V& low, V& high) {
  using Lane = std::remove_reference_t<decltype(x[0])>;
  constexpr int kN = kLanes<Lane>;
  using Sequence = std::make_integer_sequence<int, kN>;
  low = shuffle(x, y, interleaved<0, kN>(Sequence{}));
  high = shuffle(x, y, interleaved<kN / 2, kN>(Sequence{}));
}

// Step of a transposing reduction: lanes whose index has bit kBit clear take a, the others b, each added to
// the lane kBit away. After steps kBit = 1, 2, 4, ... over pairs, lane i holds the sum of vector i.
template <int kBit, int kN, int... kIndex>
constexpr auto keep_lanes(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (kIndex & kBit ? kN + kIndex : kIndex)...>{};
}
template <int kBit, int kN, int... kIndex>
constexpr auto swap_lanes(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (kIndex & kBit ? kN + (kIndex ^ kBit) : (kIndex ^ kBit))...>{};
}
// Sums of kCount vectors, parts[0], parts[kStride], ...: with kCount = lanes, all sums are in one vector.
template <class A, int kCount>
DINO_INLINE Vector<A> transposed_sums(const Vector<A>* parts, int stride = 1) {
  if constexpr (kCount == 1) {
    return parts[0];
  } else {
    // Vectors with even and odd index are reduced separately, so that the last step splits by lane bit 0.
    constexpr int kHalf = kCount / 2;
    const Vector<A> a = transposed_sums<A, kHalf>(parts, stride * 2);
    const Vector<A> b = transposed_sums<A, kHalf>(parts + stride, stride * 2);
    constexpr int kN = kLanes<A>;
    constexpr int kLaneBit = kN / kCount;
    using Sequence = std::make_integer_sequence<int, kN>;
    return shuffle(a, b, keep_lanes<kLaneBit, kN>(Sequence{})) +
           shuffle(a, b, swap_lanes<kLaneBit, kN>(Sequence{}));
  }
}

// Converts lanes of a 32-bit vector to 64 bits for addresses, in parts, sign extended. (GCC 12 splits
// __builtin_convertvector between vectors of different size lane by lane.)
template <class A>
constexpr int parts_of_addresses = static_cast<int>(sizeof(int64_t) / sizeof(A));
template <class A>
DINO_INLINE Vector<int64_t> address_part(Vector<Integer<A>> v, int part) {
  if constexpr (sizeof(A) == sizeof(int64_t)) {
    return v;
  } else {
#if defined(__AVX512F__)
    const __m512i lanes = (__m512i)v;
    const __m256i half =
        part == 0 ? _mm512_castsi512_si256(lanes) : _mm512_maskz_extracti64x4_epi64(0xf, lanes, 1);
    return (Vector<int64_t>)_mm512_maskz_cvtepi32_epi64(0xff, half);
#elif defined(__AVX2__)
    const __m256i lanes = (__m256i)v;
    const __m128i half = part == 0 ? _mm256_castsi256_si128(lanes) : _mm256_extracti128_si256(lanes, 1);
    return (Vector<int64_t>)_mm256_cvtepi32_epi64(half);
#else
    using Half = Vector<int32_t, DINO_VECTOR_BYTES / 2>;
    Half half;
    __builtin_memcpy(&half, reinterpret_cast<const char*>(&v) + part * sizeof(Half), sizeof(Half));
    return __builtin_convertvector(half, Vector<int64_t>);
#endif
  }
}
// a where the part's lanes of `mask` are set, else b.
template <class A>
DINO_INLINE Vector<int64_t> select_addresses(Vector<Integer<A>> mask, int part, Vector<int64_t> a,
                                             Vector<int64_t> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == sizeof(int32_t)) {
    const auto lanes = static_cast<__mmask8>(_mm512_movepi32_mask((__m512i)mask) >> (part * 8));
    return (Vector<int64_t>)_mm512_mask_blend_epi64(lanes, (__m512i)b, (__m512i)a);
  }
#endif
  return address_part<A>(mask, part) != 0 ? a : b;
}
// The 64-bit product of numbers that fit in 32 bits.
DINO_INLINE Vector<int64_t> multiply_low(Vector<int64_t> a, Vector<int64_t> b) {
#if defined(__AVX512F__)
  return (Vector<int64_t>)_mm512_mul_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Vector<int64_t>)_mm256_mul_epi32((__m256i)a, (__m256i)b);
#else
  return a * b;
#endif
}

template <int kBit, int... kIndex>
constexpr auto exchanged(std::integer_sequence<int, kIndex...>) {
  return std::integer_sequence<int, (kIndex ^ kBit)...>{};
}
// The sum or the maximum of all lanes, in every lane.
template <class A, int kBit = kLanes<A> / 2>
DINO_INLINE Vector<A> sum_of_lanes(Vector<A> v) {
  if constexpr (kBit == 0) {
    return v;
  } else {
    using Sequence = std::make_integer_sequence<int, kLanes<A>>;
    return sum_of_lanes<A, kBit / 2>(v + shuffle(v, v, exchanged<kBit>(Sequence{})));
  }
}
template <class A, int kBit = kLanes<A> / 2>
DINO_INLINE Vector<A> max_of_lanes(Vector<A> v) {
  if constexpr (kBit == 0) {
    return v;
  } else {
    using Sequence = std::make_integer_sequence<int, kLanes<A>>;
    const Vector<A> other = shuffle(v, v, exchanged<kBit>(Sequence{}));
    return max_of_lanes<A, kBit / 2>(v > other ? v : other);
  }
}

template <class A, int kBit = kLanes<A> / 2>
DINO_INLINE Vector<A> min_of_lanes(Vector<A> v) {
  if constexpr (kBit == 0) {
    return v;
  } else {
    using Sequence = std::make_integer_sequence<int, kLanes<A>>;
    const Vector<A> other = shuffle(v, v, exchanged<kBit>(Sequence{}));
    return min_of_lanes<A, kBit / 2>(v < other ? v : other);
  }
}

// The minimum of the lanes that are congruent modulo kGroups, in each of them.
template <class A, int kGroups, int kBit = kLanes<A> / 2>
DINO_INLINE Vector<A> min_of_groups(Vector<A> v) {
  if constexpr (kBit < kGroups) {
    return v;
  } else {
    using Sequence = std::make_integer_sequence<int, kLanes<A>>;
    const Vector<A> other = shuffle(v, v, exchanged<kBit>(Sequence{}));
    return min_of_groups<A, kGroups, kBit / 2>(v < other ? v : other);
  }
}

// The true lanes of a comparison's result, lane i as bit i.
DINO_INLINE uint32_t bits_of(Vector<int32_t> mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= (mask[i] & 1u) << i;
  return bits;
#endif
}
DINO_INLINE uint32_t bits_of(Vector<int64_t> mask) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<double>; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}

// Loads fewer numbers than a vector has lanes; the other lanes are `fill`.
template <class A>
DINO_INLINE Vector<A> load_first(const A* from, int64_t count, A fill) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(A) == 4) {
    return (Vector<A>)_mm512_mask_loadu_ps((__m512)broadcast(fill), mask, from);
  } else {
    return (Vector<A>)_mm512_mask_loadu_pd((__m512d)broadcast(fill), static_cast<__mmask8>(mask), from);
  }
#else
  Vector<A> v = broadcast(fill);
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
#endif
}
template <class A>
DINO_INLINE void store_first(A* to, Vector<A> v, int64_t count) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (sizeof(A) == 4) {
    _mm512_mask_storeu_ps(to, mask, (__m512)v);
  } else {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), (__m512d)v);
  }
#else
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
#endif
}

// The smaller and the larger of two numbers; b if one is NaN.
DINO_INLINE Vector<float> min_of(Vector<float> a, Vector<float> b) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#else
  return a < b ? a : b;
#endif
}
DINO_INLINE Vector<float> max_of(Vector<float> a, Vector<float> b) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#else
  return a > b ? a : b;
#endif
}

template <class A>
DINO_INLINE Vector<A> absolute(Vector<A> v) {
  constexpr Integer<A> kSign = sizeof(A) == 8 ? Integer<A>(INT64_MIN) : Integer<A>(INT32_MIN);
  return bit_cast<Vector<A>>(bit_cast<Vector<Integer<A>>>(v) & ~kSign);
}
template <class A>
DINO_INLINE Vector<Integer<A>> is_finite(Vector<A> v) {
  return absolute<A>(v) < A(__builtin_inf());
}

}  // namespace dino_kernels::DINO_CPU_VARIANT
