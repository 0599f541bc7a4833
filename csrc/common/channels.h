// Loads and stores of consecutive channels as compute vectors, for every storage type.
//
// The lanes of a block may be in another order than the channels: bfloat16 pairs are split into even and odd
// channels, one shift and one mask for two vectors. load and store of the same <T, kVectors> agree.
#pragma once

#include "scratch.h"
#include "simd.h"

namespace dino_kernels::DINO_CPU_VARIANT {

DINO_INLINE Vector<float> widen(const BFloat16* from) {
  const auto bits = load<Vector<uint16_t, DINO_VECTOR_BYTES / 2>>(from);
  return bit_cast<Vector<float>>(__builtin_convertvector(bits, Vector<uint32_t>) << 16);
}

// Round to nearest even; NaN becomes a quiet NaN. The result is in the high half of each lane.
DINO_INLINE Vector<uint32_t> round_to_bfloat16(Vector<float> v) {
  const auto bits = bit_cast<Vector<uint32_t>>(v);
  const auto rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const auto is_nan = v != v;
  return (is_nan ? bits | 0x400000 : rounded) & 0xffff0000u;
}

DINO_INLINE void narrow(BFloat16* to, Vector<float> v) {
  const auto bits = round_to_bfloat16(v) >> 16;
  store(to, __builtin_convertvector(bits, Vector<uint16_t, DINO_VECTOR_BYTES / 2>));
}

#if defined(__AVX512F__)
// The zero-masking forms: the plain ones start from an undefined register, which GCC warns about.
DINO_INLINE Vector<float> widen(const Half* from) {
  return (Vector<float>)_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(from));
}
DINO_INLINE void narrow(Half* to, Vector<float> v) {
  store(to, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
DINO_INLINE Vector<float> widen(const Half* from) {
  return (Vector<float>)_mm256_cvtph_ps(load<__m128i>(from));
}
DINO_INLINE void narrow(Half* to, Vector<float> v) {
  store(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Moves exponent and mantissa to their float32 place; one multiplication rebiases the exponent and makes
// denormals exact. Infinities and NaN are fixed afterwards.
DINO_INLINE Vector<float> widen(const Half* from) {
  using Bits = Vector<uint32_t>;
  const Bits half = __builtin_convertvector(load<Vector<uint16_t, DINO_VECTOR_BYTES / 2>>(from), Bits);
  const Bits sign = (half & 0x8000) << 16, magnitude = half & 0x7fff;
  const Bits finite = bit_cast<Bits>(bit_cast<Vector<float>>(magnitude << 13) * 0x1p112f);
  const Bits special = (magnitude << 13) | 0x7f800000;
  return bit_cast<Vector<float>>((magnitude >= 0x7c00 ? special : finite) | sign);
}
DINO_INLINE void narrow(Half* to, Vector<float> v) {
  using Bits = Vector<uint32_t>;
  const Bits bits = bit_cast<Bits>(v);
  const Bits sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // Half denormals: adding 0.5 aligns the mantissa so that the float32 addition rounds it to nearest even.
  const Bits denormal = bit_cast<Bits>(bit_cast<Vector<float>>(magnitude) + 0.5f) - 0x3f000000;
  const Bits normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  Bits half = magnitude < 0x38800000 ? denormal : normal;
  half = magnitude >= 0x47800000 ? Bits{} + 0x7c00 : half;  // 65536 and above; 65520..65535 rounds there too
  half = magnitude > 0x7f800000 ? Bits{} + 0x7e00 : half;
  store(to, __builtin_convertvector(half | sign, Vector<uint16_t, DINO_VECTOR_BYTES / 2>));
}
#endif

DINO_INLINE Vector<float> widen(const float* from) { return load<Vector<float>>(from); }
DINO_INLINE Vector<double> widen(const double* from) { return load<Vector<double>>(from); }
DINO_INLINE void narrow(float* to, Vector<float> v) { store(to, v); }
DINO_INLINE void narrow(double* to, Vector<double> v) { store(to, v); }

// A block of kVectors vectors of channels.
template <class T, int kVectors>
struct Block {
  using A = typename Compute<T>::type;
  static constexpr int kChannels = kVectors * kLanes<A>;
  static DINO_INLINE void load(const T* from, Vector<A>* lanes) {
    for (int i = 0; i < kVectors; ++i) lanes[i] = widen(from + i * kLanes<A>);
  }
  static DINO_INLINE void store(T* to, const Vector<A>* lanes) {
    for (int i = 0; i < kVectors; ++i) narrow(to + i * kLanes<A>, lanes[i]);
  }
};

template <int kVectors>
  requires(kVectors % 2 == 0)
struct Block<BFloat16, kVectors> {
  static constexpr int kChannels = kVectors * kLanes<float>;
  static DINO_INLINE void load(const BFloat16* from, Vector<float>* lanes) {
    for (int i = 0; i < kVectors; i += 2) {
      const auto pairs = DINO_CPU_VARIANT::load<Vector<uint32_t>>(from + i * kLanes<float>);
      lanes[i] = bit_cast<Vector<float>>(pairs << 16);
      lanes[i + 1] = bit_cast<Vector<float>>(pairs & 0xffff0000u);
    }
  }
  static DINO_INLINE void store(BFloat16* to, const Vector<float>* lanes) {
    for (int i = 0; i < kVectors; i += 2) {
      const auto pairs = (round_to_bfloat16(lanes[i]) >> 16) | round_to_bfloat16(lanes[i + 1]);
      DINO_CPU_VARIANT::store(to + i * kLanes<float>, pairs);
    }
  }
};

// Loads fewer channels than a vector has lanes; the other lanes are zero.
template <class T>
DINO_INLINE auto load_some(const T* from, int64_t count) {
  T copy[kLanes<typename Compute<T>::type>] = {};
  for (int64_t i = 0; i < count; ++i) copy[i] = from[i];
  return widen(copy);
}
template <class T, class V>
DINO_INLINE void store_some(T* to, V lanes, int64_t count) {
  T copy[kLanes<typename Compute<T>::type>];
  narrow(copy, lanes);
  for (int64_t i = 0; i < count; ++i) to[i] = copy[i];
}

// All D channels of a row as vectors. kVectors > 0: D is that many full vectors; 0: any D, with a partial
// last vector.
template <class T, int kVectors>
struct Channels {
  using A = typename Compute<T>::type;
  static DINO_INLINE int64_t vectors(int64_t D) {
    return kVectors ? kVectors : round_up(D, kLanes<A>) / kLanes<A>;
  }
  static DINO_INLINE void load(const T* row, int64_t D, Vector<A>* lanes) {
    if constexpr (kVectors > 0) {
      Block<T, kVectors>::load(row, lanes);
    } else {
      int64_t d = 0;
      for (; d + kLanes<A> <= D; d += kLanes<A>) lanes[d / kLanes<A>] = widen(row + d);
      if (d < D) lanes[d / kLanes<A>] = load_some(row + d, D - d);
    }
  }
  static DINO_INLINE void store(T* row, int64_t D, const Vector<A>* lanes) {
    if constexpr (kVectors > 0) {
      Block<T, kVectors>::store(row, lanes);
    } else {
      int64_t d = 0;
      for (; d + kLanes<A> <= D; d += kLanes<A>) narrow(row + d, lanes[d / kLanes<A>]);
      if (d < D) store_some(row + d, lanes[d / kLanes<A>], D - d);
    }
  }
};

}  // namespace dino_kernels::DINO_CPU_VARIANT
