// Tensor cores for a warp of fibers; csrc/common/mma.cuh has the numbers of each lane.

#include <algorithm>

#include "cuda_runtime.h"

namespace emulation {
namespace {

constexpr uint32_t kAll = 0xffffffffu;

// c + a[0] b[0] + ... + a[7] b[7], at least as imprecise as on Ampere and Hopper (README.md). Products are
// exact. All 9 terms are aligned to the largest, cut off 24 bits below its leading one and summed without
// error, and the sum is cut off to float32.
float dot(const double* a, const double* b, float c) {
  double terms[9], largest = std::fabs(c), sum = c;
  for (int k = 0; k < 8; ++k) {
    terms[k] = a[k] * b[k];
    const double magnitude = std::fabs(terms[k]);
    largest = magnitude > largest ? magnitude : largest;
    sum += terms[k];
  }
  terms[8] = c;
  // An infinity or NaN: as IEEE has it. Nothing else comes near the limits of float64.
  if (!(std::fabs(sum) < HUGE_VAL) || largest == 0) return static_cast<float>(sum);
  const int exponent = static_cast<int>(to_bits(largest) >> 52) - 1023;
  const auto power_of_two = [](int e) { return from_bits<double>(static_cast<uint64_t>(1023 + e) << 52); };
  const double units = power_of_two(24 - exponent);
  int count = 0;
  for (const double term : terms) count += static_cast<int>(term * units);
  const double cut = count * power_of_two(exponent - 24);
  const float nearest = static_cast<float>(cut);
  if (std::fabs(cut) >= 0x1p128 || std::fabs(double{nearest}) <= std::fabs(cut)) return nearest;
  return __uint_as_float(__float_as_uint(nearest) - 1);
}

// The round of a whole warp.
const Round& together(Meeting at, const void* brought, size_t bytes) {
  const Round& round = exchange(at, kAll, 0, brought, bytes);
  if (round.present != kAll)
    broken("a tensor core operation needs all 32 lanes, and " +
           std::to_string(__builtin_popcount(round.present)) + " take part");
  return round;
}

}  // namespace

void mma_16x8x8(float (&d)[4], const float (&fragments)[6]) {
  const Round& round = together(Meeting::mma_of_8, fragments, sizeof(fragments));
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    double a[8], b[8];  // row g or g + 8 of A, column 2t or 2t + 1 of B
    for (int k = 0; k < 8; ++k) {
      const auto number = [&, k](int from, int reg) {
        float found;
        std::memcpy(&found, round.wide[from] + 8 * reg + 4 * (k % 2), 4);
        return double{found};
      };
      a[k] = number(4 * g + k / 2, i / 2);
      b[k] = number(4 * (2 * t + i % 2) + k / 2, 2);
    }
    d[i] = dot(a, b, d[i]);
  }
}

void mma_16x8x16(float (&d)[4], const float (&fragments)[12]) {
  const Round& round = together(Meeting::mma, fragments, sizeof(fragments));
  const int g = lane() / 4, t = lane() % 4;
  // The two numbers that a lane has in a register.
  const auto copy = [&round](int from, int reg, double* to) {
    float pair[2];
    std::memcpy(pair, round.wide[from] + 8 * reg, 8);
    to[0] = pair[0];
    to[1] = pair[1];
  };
  double a[2][16], b[2][16];  // rows g and g + 8, columns 2t and 2t + 1
  for (int k = 0; k < 8; k += 2) {
    for (int i = 0; i < 2; ++i) {
      copy(4 * g + k / 2, i, &a[i][k]);
      copy(4 * g + k / 2, i + 2, &a[i][k + 8]);
      copy(4 * (2 * t + i) + k / 2, 4, &b[i][k]);
      copy(4 * (2 * t + i) + k / 2, 5, &b[i][k + 8]);
    }
  }
  for (int k = 0; k < 16; k += 8) {
    for (int i = 0; i < 4; ++i) d[i] = dot(a[i / 2] + k, b[i % 2] + k, d[i]);
  }
}

void load_matrix_x4(uint32_t (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16) broken("a row for ldmatrix is not aligned to 16 bytes");
  const Round& round = together(transposed ? Meeting::ldmatrix_trans : Meeting::ldmatrix, row, 16);
  const int g = lane() / 4, t = lane() % 4;
  for (int m = 0; m < 4; ++m) {
    const auto copy = [&, m](int i, int j, int half) {
      std::memcpy(reinterpret_cast<char*>(&r[m]) + 2 * half, round.wide[8 * m + i] + 2 * j, 2);
    };
    for (int half = 0; half < 2; ++half) {
      if (transposed) {
        copy(2 * t + half, g, half);
      } else {
        copy(g, 2 * t + half, half);
      }
    }
  }
}

}  // namespace emulation
