// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/cta_reduction.cuh>
#include <blockattn/cuda/tensor_core.cuh>
#include <cstdint>

/// \file
/// Sums of 2^(scale logit - reference). References are whole numbers: when one rises, what was
/// summed is divided by a power of 2, which rounds nothing.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// log2(e) / temperature to twice the digits of fp32: logits of 1e4 lose nothing to its rounding.
struct exponent_scale {
  float high, low;
  double exact;

  /// scale * logit - reference.
  __device__ __forceinline__ float exponent(float logit, float reference) const {
    return fmaf(logit, low, fmaf(logit, high, -reference));
  }
};

/// 2^n for a whole n <= 0, -inf included; 0 from 2^-127 down.
__device__ __forceinline__ float exp2_of_integer(float n) {
  return __uint_as_float(static_cast<std::uint32_t>(static_cast<int>(fmaxf(n, -127.0F)) + 127)
                         << 23);
}

struct exponential_sum {
  float reference = -INFINITY;
  float total = 0;

  /// Makes room for logits up to `largest`. Returns the log2 by which the sum so far shrinks.
  __device__ __forceinline__ float raise(float largest, const exponent_scale& scale) {
    return raise_to(floorf(largest * scale.high));
  }
  /// Makes room for terms up to 2^(wanted + 1), `wanted` a whole number.
  __device__ __forceinline__ float raise_to(float wanted) {
    const float raised = fmaxf(reference, wanted);
    const float shift = total > 0 ? reference - raised : 0;
    reference = raised;
    total *= exp2_of_integer(shift);
    return shift;
  }
  /// Adds the terms of logit(i) for each i of a piece that `counts` accepts.
  template <class Piece, class Logit, class Counts>
  __device__ __forceinline__ void add(const Piece& piece,
                                      const exponent_scale& scale,
                                      const Logit& logit,
                                      const Counts& counts) {
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < Piece::width; ++i) {
      if (piece.has(i) && counts(i)) largest = fmaxf(largest, logit(i));
    }
    raise(largest, scale);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < Piece::width; ++i) {
      if (piece.has(i) && counts(i)) sum += exp2_approximate(scale.exponent(logit(i), reference));
    }
    total += sum;
  }
  template <class Piece>
  __device__ __forceinline__ void add_teacher(const Piece& piece, const exponent_scale& scale) {
    add(
        piece, scale, [&](int i) { return piece.teacher(i); }, [](int) { return true; });
  }
  template <class Piece>
  __device__ __forceinline__ void add_student(const Piece& piece, const exponent_scale& scale) {
    add(
        piece, scale, [&](int i) { return piece.student(i); }, [](int) { return true; });
  }
  /// The sum of all threads' sums.
  __device__ __forceinline__ void join() {
    float largest[1] = {reference};
    max_over_cta(largest);
    raise_to(largest[0]);
    float totals[1] = {total};
    sum_over_cta(totals);
    total = totals[0];
  }
  /// log2 of the softmax probability of a logit.
  __device__ __forceinline__ double log2_probability(float logit,
                                                     const exponent_scale& scale) const {
    return scale.exact * static_cast<double>(logit) - static_cast<double>(reference) -
           log2(static_cast<double>(total));
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
