// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/cuda/config.cuh>
#include <cstdint>

/// \file
/// Matrix fragments of one warp (PTX ISA, "Matrix Fragments for mma.m16n8k16"). Lane l holds, of a
/// 16 x 8 accumulator, rows l / 4 and l / 4 + 8 in columns 2 (l % 4) and 2 (l % 4) + 1; two
/// neighbouring accumulators, packed, are the 16 x 16 left operand of the next product.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Four 8 x 8 matrices of 16-bit values; lane l names the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(std::uint32_t (&fragment)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

/// The same with each matrix transposed.
__device__ __forceinline__ void load_transposed(std::uint32_t (&fragment)[4],
                                                std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

/// What differs between the 16-bit formats that tensor cores multiply.
template <storage_format Format>
struct tensor_operand;

template <>
struct tensor_operand<storage_format::bf16> {
  static constexpr std::uint32_t two_signs = 0x80008000U;

  static __device__ __forceinline__ float widen(std::uint16_t bits) {
    return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
  }
  /// Rounds to nearest even; `low` goes to the low half.
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    std::uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  /// sum (16 x 8) += a (16 x 16) b (16 x 8), in fp32.
  static __device__ __forceinline__ void multiply_add(float (&sum)[4],
                                                      const std::uint32_t (&a)[4],
                                                      std::uint32_t b_low,
                                                      std::uint32_t b_high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
  }
};

template <>
struct tensor_operand<storage_format::fp16> {
  static constexpr std::uint32_t two_signs = 0x80008000U;

  static __device__ __forceinline__ float widen(std::uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    std::uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  static __device__ __forceinline__ void multiply_add(float (&sum)[4],
                                                      const std::uint32_t (&a)[4],
                                                      std::uint32_t b_low,
                                                      std::uint32_t b_high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
  }
};

/// 2^x to about 2 units in the last place; 2^-inf = 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
