// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/cuda/tensor_core.cuh>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Where a forward call writes: o in one of three formats and lse, of one query head.
struct output_rows {
  void* o;  ///< (query_tokens, query_heads, value_dim)
  std::int64_t o_token_stride, o_head_stride;
  float* lse;  ///< (query_tokens, query_heads) or null
  std::int64_t lse_token_stride, lse_head_stride;
  const float* sink_logits;  ///< (query_heads) or null
  storage_format format;     ///< of o
  int value_dim;
  int vectors;  ///< 1 when all rows of o begin at multiples of 16 bytes

  __device__ __forceinline__ std::int64_t element(std::int64_t token, std::int64_t head) const {
    return token * o_token_stride + head * o_head_stride;
  }

  /// Stores one value, rounded once; `at` counts elements.
  __device__ __forceinline__ void store(std::int64_t at, float value) const {
    if (format == storage_format::fp32) {
      static_cast<float*>(o)[at] = value;
    } else if (format == storage_format::bf16) {
      const auto pair = tensor_operand<storage_format::bf16>::pack(value, 0.0F);
      static_cast<std::uint16_t*>(o)[at] = static_cast<std::uint16_t>(pair);
    } else {
      const auto pair = tensor_operand<storage_format::fp16>::pack(value, 0.0F);
      static_cast<std::uint16_t*>(o)[at] = static_cast<std::uint16_t>(pair);
    }
  }
};

/// The maximum of a row that has seen nothing: finite, so that its distance to -inf is not NaN.
inline constexpr float no_maximum = -3.4028234663852886e38F;

/// The softmax of a row before its division: weights are 2^(score_log2 - max_log2), `sum` adds them
/// up, and the row's output holds sum_j weight_j v_j.
struct row_statistics {
  float max_log2;
  float sum;
};

/// Ends a row: applies the head's sink logit, writes lse, and returns the factor that turns the
/// weighted sum of values into the output. A row that sees nothing has output 0.
__device__ __forceinline__ float finish_row(const output_rows& out,
                                            const row_statistics& row,
                                            std::int64_t token,
                                            std::int64_t head,
                                            bool writes_lse) {
  constexpr float log2_e = 1.4426950408889634F;
  constexpr float ln_2 = 0.6931471805599453F;
  const float sink = out.sink_logits != nullptr ? out.sink_logits[head] : -INFINITY;
  float lse = sink;
  float factor = 0;
  if (row.sum != 0) {  // true for NaN
    const float largest = fmaxf(row.max_log2, sink * log2_e);
    const float kept = exp2f(row.max_log2 - largest);
    const float total = row.sum * kept + exp2f(sink * log2_e - largest);
    factor = kept / total;
    lse = fmaf(largest, ln_2, logf(total));
  }
  if (writes_lse && out.lse != nullptr) {
    out.lse[token * out.lse_token_stride + head * out.lse_head_stride] = lse;
  }
  return factor;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
