// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/cuda/config.cuh>
#include <cstdint>

/// \file
/// Matrix fragments of one warp (PTX ISA, "Matrix Fragments for mma.m16n8k16" and "m16n8k8"). Lane
/// l holds, of a 16 x 8 accumulator, rows l / 4 and l / 4 + 8 in columns
/// 2 (l % 4) and 2 (l % 4) + 1; two neighbouring accumulators, packed, are the 16 x 16 left operand
/// of the next product in a 16-bit format, one is a 16 x 8 operand in fp32.

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

/// A 32-bit word.
__device__ __forceinline__ std::uint32_t load_word(std::uint32_t address) {
  std::uint32_t word;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}

/// How values of a storage format are multiplied: here bf16 and fp16. A step of a product takes 32
/// bytes of each row, of its left operand (16 rows) and of its right one (8 columns).
template <storage_format Format>
struct tensor_operand {
  static_assert(Format == storage_format::bf16 || Format == storage_format::fp16);
  using stored = std::uint16_t;
  struct left {
    std::uint32_t pairs[4];
  };
  struct right {
    std::uint32_t low, high;
  };
  static constexpr int accumulators = 2;                   ///< that make a left operand
  static constexpr std::uint32_t sign_bits = 0x80008000U;  ///< in a word

  /// Rounds to nearest even; `low` goes to the low half.
  static __device__ __forceinline__ std::uint32_t pack(float low, float high) {
    std::uint32_t pair;
    if constexpr (Format == storage_format::bf16) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    }
    return pair;
  }
  static __device__ __forceinline__ float widen(std::uint16_t bits) {
    if constexpr (Format == storage_format::bf16) {
      return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
    } else {
      float value;
      asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
      return value;
    }
  }
  /// Stores two neighbouring values, rounded, to shared memory.
  static __device__ __forceinline__ void store_pair(std::uint32_t address, float low, float high) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(pack(low, high)) : "memory");
  }

  static __device__ __forceinline__ left as_left(const std::uint32_t (&fragment)[4]) {
    return {{fragment[0], fragment[1], fragment[2], fragment[3]}};
  }
  /// Rounds.
  static __device__ __forceinline__ left as_left(const float (&values)[accumulators][4]) {
    return {{pack(values[0][0], values[0][1]), pack(values[0][2], values[0][3]),
             pack(values[1][0], values[1][1]), pack(values[1][2], values[1][3])}};
  }
  static __device__ __forceinline__ right as_right(std::uint32_t low, std::uint32_t high) {
    return {low, high};
  }

  /// sum (16 x 8) += a b, in fp32.
  static __device__ __forceinline__ void multiply_add(float (&sum)[4],
                                                      const left& a,
                                                      const right& b) {
    if constexpr (Format == storage_format::bf16) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
          "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "r"(b.low),
            "r"(b.high));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
          "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a.pairs[0]), "r"(a.pairs[1]), "r"(a.pairs[2]), "r"(a.pairs[3]), "r"(b.low),
            "r"(b.high));
    }
  }
};

/// fp32 in three products of TF32, whose numbers are the upper 19 bits of fp32's: x = big + small,
/// big rounded to 11 significant bits, so that |small| <= 2^-11 |x|, of whose 12 bits the last is
/// cut off: x is held to 2^-23 |x|. a b without small x small is then within
/// (2^-23 + 2^-23 + 2^-22) |a b| = 2^-21 |a b| of its value. Infinities, and numbers so large that
/// big is one, become NaN.
template <>
struct tensor_operand<storage_format::fp32> {
  using stored = float;
  struct left {
    std::uint32_t big[4], small[4];
  };
  struct right {
    std::uint32_t big[2], small[2];
  };
  static constexpr int accumulators = 1;
  static constexpr std::uint32_t sign_bits = 0x80000000U;

  static __device__ __forceinline__ float widen(float value) { return value; }
  static __device__ __forceinline__ void store_pair(std::uint32_t address, float low, float high) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(low), "f"(high) : "memory");
  }

  static __device__ __forceinline__ left as_left(const std::uint32_t (&fragment)[4]) {
    left a;
#pragma unroll
    for (int i = 0; i < 4; ++i) split(fragment[i], a.big[i], a.small[i]);
    return a;
  }
  /// Columns 2 t and 2 t + 1 of the accumulator, which a lane holds, stand for columns t and t + 4
  /// of the operand: right operands are read with their rows in that order.
  static __device__ __forceinline__ left as_left(const float (&values)[accumulators][4]) {
    const float(&v)[4] = values[0];
    return as_left({__float_as_uint(v[0]), __float_as_uint(v[2]), __float_as_uint(v[1]),
                    __float_as_uint(v[3])});
  }
  static __device__ __forceinline__ right as_right(std::uint32_t low, std::uint32_t high) {
    right b;
    split(low, b.big[0], b.small[0]);
    split(high, b.big[1], b.small[1]);
    return b;
  }

  /// The products of a step are added up from 0, the small ones first, and rounded into the sum by
  /// an addition of their own: tensor cores cut off what does not fit, and a sum over many steps
  /// would lose a little in each, always towards 0 (Ootomo and Yokota, arXiv 2203.03341).
  static __device__ __forceinline__ void multiply_add(float (&sum)[4],
                                                      const left& a,
                                                      const right& b) {
    float products[4] = {0, 0, 0, 0};
    multiply_add(products, a.small, b.big);
    multiply_add(products, a.big, b.small);
    multiply_add(products, a.big, b.big);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += products[i];
  }

 private:
  static __device__ __forceinline__ void split(std::uint32_t bits,
                                               std::uint32_t& big,
                                               std::uint32_t& small) {
    constexpr std::uint32_t kept = 0xffffe000U;
    big = (bits + 0x1000U) & kept;
    small = __float_as_uint(__uint_as_float(bits) - __uint_as_float(big)) & kept;
  }
  static __device__ __forceinline__ void multiply_add(float (&sum)[4],
                                                      const std::uint32_t (&a)[4],
                                                      const std::uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

/// 2^x to about 2 units in the last place; 2^-inf = 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
