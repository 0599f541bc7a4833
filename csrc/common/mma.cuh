// Tensor cores: one small matrix product for a warp, in registers, and loads of its operands from shared
// memory.
//
// All 32 lanes must call each function here together. A matrix is distributed over the registers of the
// lanes: with g = lane / 4 and t = lane % 4, each register holds two neighbours of 16 bits, the first in the
// lower half.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vec.cuh"

namespace dino_kernels {

#if !defined(__CUDACC__)
// The two numbers of each register.
template <class T, int kRegisters>
void emulation_numbers(const uint32_t (&pairs)[kRegisters], float* numbers) {
  for (int i = 0; i < kRegisters; ++i) {
    T pair[2];
    memcpy(pair, &pairs[i], 4);
    numbers[2 * i] = widen(pair[0]);
    numbers[2 * i + 1] = widen(pair[1]);
  }
}
#endif

// d += A B, with A of 16 x 16 and B of 16 x 8 in BFloat16 or Half, and d of 16 x 8 in float32:
//
//   a0 = A[g][2t], A[g][2t + 1]          a2 = A[g][2t + 8], A[g][2t + 9]
//   a1 = A[g + 8][2t], A[g + 8][2t + 1]  a3 = A[g + 8][2t + 8], A[g + 8][2t + 9]
//   b0 = B[2t][g], B[2t + 1][g]          b1 = B[2t + 8][g], B[2t + 9][g]
//   d[0], d[1] = D[g][2t], D[g][2t + 1]  d[2], d[3] = D[g + 8][2t], D[g + 8][2t + 1]
//
// Lane quad g therefore holds rows g and g + 8 of A and of D, and column g of B. Permuting the 16 columns of
// A and rows of B alike changes no product, so eight neighbours of a row may be loaded at once. PTX promises
// single precision for the sum, but neither its order nor its rounding (PTX ISA, mma.m16n8k16).
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                            uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, BFloat16> || std::is_same_v<T, Half>,
                "tensor cores multiply 16-bit types here");
#if defined(__CUDACC__)
  // volatile: otherwise the compiler might move the instruction to the use of its result, possibly into a
  // branch that not all lanes take. ptxas schedules it like any other instruction.
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
#else
  float numbers[12];
  emulation_numbers<T>({a0, a1, a2, a3, b0, b1}, numbers);
  emulation::mma_16x8x16(d, numbers);
#endif
}

// The same with A of 16 x 8 and B of 8 x 8: a0, a1 and b0 as above (PTX ISA, mma.m16n8k8).
template <class T>
__device__ __forceinline__ void mma_16x8x8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
  } else {
    static_assert(std::is_same_v<T, Half>, "tensor cores multiply 16-bit types here");
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
  }
#else
  float numbers[6];
  emulation_numbers<T>({a0, a1, b0}, numbers);
  emulation::mma_16x8x8(d, numbers);
#endif
}

// Loads four matrices of 8 x 8 numbers of 16 bits from shared memory. A row is 16 bytes, aligned to 16 bytes;
// lane i passes the address of row i % 8 of matrix i / 8. r[m] becomes matrix_m[g][2t], matrix_m[g][2t + 1].
// With matrices (top left, bottom left, top right, bottom right) of a 16 x 16 matrix A these are a0 to a3
// above.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared_row)))
               : "memory");
#else
  emulation::load_matrix_x4(r, shared_row, false);
#endif
}

// The same with each matrix transposed: r[m] becomes matrix_m[2t][g], matrix_m[2t + 1][g]. With the matrices
// that make up 32 rows of a row-major B, 8 columns wide, these are b0 and b1 above, twice.
__device__ __forceinline__ void load_transposed_x4(uint32_t (&r)[4], const void* shared_row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared_row)))
               : "memory");
#else
  emulation::load_matrix_x4(r, shared_row, true);
#endif
}

}  // namespace dino_kernels
