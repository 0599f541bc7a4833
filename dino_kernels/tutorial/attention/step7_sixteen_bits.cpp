// Step 7: value, offsets, logits and gradients are stored in 16 bits; every sum stays float32. A row of 32
// channels is one cache line instead of two.
#include <bit>
#include <cstdint>

// The upper half of a float32: 8 bits of exponent, 7 of the fraction.
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  // Rounds to nearest, ties to even. NaN stays NaN: the sum of its bits could carry into the sign.
  explicit BFloat16(float number) {
    const uint32_t word = std::bit_cast<uint32_t>(number);
    bits = number != number ? 0x7fc0 : (word + 0x7fff + (word >> 16 & 1)) >> 16;
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

#define STORED BFloat16
#include "step6_tiles.cpp"
