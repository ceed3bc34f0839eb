// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index.hpp>
#include <blockattn/cuda/plan_lists.cuh>
#include <blockattn/cuda/row_access.cuh>
#include <blockattn/cuda/shared_tile.cuh>
#include <blockattn/cuda/tensor_core.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// How the backward kernels are cut for head dims up to Columns: tiles of side x side, of which a
/// cta owns `rows` of the outer axis, 16 for each of its row warps. `Stored` is what tensors are
/// stored as: 16 bits, or float. Tried on an H100, head dim 128, causal 8K, and not faster: in the
/// query kernel 32 rows for each warp and half of the keys (shared memory busy 57 % of the time,
/// the key kernel's is 80 %), or three ctas of one stage.
template <int Columns, class Stored = std::uint16_t>
struct backward_tuning {
  static constexpr int columns = Columns;
  static constexpr int side = 64;
  /// Of scores, that a warp holds at a time.
  static constexpr int strip = sizeof(Stored) == 2 ? 64 : 16;
  static constexpr int rows = 64;
  static constexpr int column_warps = 1;
  static constexpr int stages = 2;  ///< tiles of the inner axis in shared memory
  static constexpr int ctas_per_processor = 2;
  /// Whether the key kernel can add up d_q in memory too.
  static constexpr bool sums_query_gradient = sizeof(Stored) == 2;
};

/// 96 KiB of tiles, which compute capability 8.6 has. Two warps form the same weights and gradients
/// of scores and add them up in half of the columns each: d_k and d_v of all would take 256
/// registers.
template <>
struct backward_tuning<256> {
  static constexpr int columns = 256;
  static constexpr int side = 64;
  static constexpr int strip = 64;
  static constexpr int rows = 32;
  static constexpr int column_warps = 2;
  static constexpr int stages = 1;
  static constexpr int ctas_per_processor = 2;
  static constexpr bool sums_query_gradient = false;
};

/// As many bytes.
template <>
struct backward_tuning<128, float> {
  static constexpr int columns = 128;
  static constexpr int side = 64;
  static constexpr int strip = 16;
  static constexpr int rows = 32;
  static constexpr int column_warps = 2;
  static constexpr int stages = 1;
  static constexpr int ctas_per_processor = 2;
  static constexpr bool sums_query_gradient = false;
};

template <>
struct backward_tuning<256, float> {
  static constexpr int columns = 256;
  static constexpr int side = 32;
  static constexpr int strip = 16;
  static constexpr int rows = 16;
  static constexpr int column_warps = 4;
  static constexpr int stages = 1;
  static constexpr int ctas_per_processor = 2;
  static constexpr bool sums_query_gradient = false;
};

/// Calls f with the tuning for two head dims of at most 256.
template <class Stored, class F>
constexpr auto with_backward_tuning(index_t head_dim, index_t value_dim, const F& f) {
  const index_t dim = std::max(head_dim, value_dim);
  if (dim <= 64) return f(backward_tuning<64, Stored>{});
  if (dim <= 128) return f(backward_tuning<128, Stored>{});
  return f(backward_tuning<256, Stored>{});
}

/// The same for a format that is known when the program runs.
template <class F>
constexpr auto with_backward_tuning(index_t head_dim,
                                    index_t value_dim,
                                    storage_format format,
                                    const F& f) {
  return format == storage_format::fp32
             ? with_backward_tuning<float>(head_dim, value_dim, f)
             : with_backward_tuning<std::uint16_t>(head_dim, value_dim, f);
}

/// What a warp of a backward cta owns: 16 rows of the cta's, and some columns of their gradients.
template <class Tuning>
struct backward_warp {
  static constexpr int threads = Tuning::rows / 16 * Tuning::column_warps * 32;
  static constexpr int columns = Tuning::columns / Tuning::column_warps;

  static __device__ __forceinline__ int first_row() {
    return static_cast<int>(threadIdx.x / 32) / Tuning::column_warps * 16;
  }
  static __device__ __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x / 32) % Tuning::column_warps * columns;
  }
};

/// A gradient in device memory, in one of three formats.
struct gradient_rows {
  void* data;
  std::int64_t token_stride, head_stride;  ///< elements
  storage_format format;
  int head_dim;
  int vectors;  ///< 1 when all rows begin at multiples of 16 bytes

  /// Stores eight neighbouring values of a row, each rounded once; `column` is a multiple of 8.
  __device__ __forceinline__ void store_chunk(std::int64_t token,
                                              std::int64_t head,
                                              int column,
                                              const float (&values)[chunk_size]) const {
    in_format([&]<storage_format Format>() {
      detail::store_chunk<Format>(at<Format>(token, head, column), values, head_dim - column,
                                  vectors);
    });
  }

  /// Stores two neighbouring values of a row, each rounded once.
  __device__ __forceinline__ void store(
      std::int64_t token, std::int64_t head, int column, float first, float second) const {
    if (column >= head_dim) return;
    in_format([&]<storage_format Format>() {
      stored_bits<Format>* const to = at<Format>(token, head, column);
      to[0] = narrow<Format>(first);
      to[1] = narrow<Format>(second);
    });
  }

 private:
  template <storage_format Format>
  __device__ __forceinline__ stored_bits<Format>* at(std::int64_t token,
                                                     std::int64_t head,
                                                     int column) const {
    return static_cast<stored_bits<Format>*>(data) + token * token_stride + head * head_stride +
           column;
  }
  template <class F>
  __device__ __forceinline__ void in_format(const F& f) const {
    if (format == storage_format::fp32) {
      f.template operator()<storage_format::fp32>();
    } else if (format == storage_format::bf16) {
      f.template operator()<storage_format::bf16>();
    } else {
      f.template operator()<storage_format::fp16>();
    }
  }
};

/// What the kernels of one backward call share. Rows of queries are padded to whole tiles in
/// `rows`, which the first kernel fills.
struct backward_parameters {
  device_view q, k, v, o, d_o;
  gradient_rows d_q, d_k, d_v;
  const float* lse;
  std::int64_t lse_token_stride, lse_head_stride;
  const float* d_lse;  ///< or null
  std::int64_t d_lse_token_stride, d_lse_head_stride;
  const float* sink_logits;  ///< or null
  float* d_sink_logits;      ///< or null
  float2* rows;              ///< (query_heads, padded_queries): lse in base 2, delta
  float* d_q_sums;  ///< (query_heads, padded_queries, sum_columns), see query_gradient_sums
  int sum_columns;  ///< 0 when d_q has a kernel of its own
  const plan_lists* lists;
  const std::int32_t* plan_of_head;
  int query_tokens, key_tokens, query_heads, kv_heads;
  int padded_queries;
  int group;             ///< query heads for each kv head
  float scale;           ///< of scores
  float exponent;        ///< weight = 2^(exponent x - lse), x = q.k or its softened form
  float softcap_factor;  ///< x = tanh(softcap_factor q.k); 0 = none
};

/// Turns products q.k into weights and products d_o.v into gradients of scores (of q.k / scale), in
/// place; hidden pairs, whose score is -inf, get 0 whatever else they hold. `row(i, n)` is the
/// float2 (lse in base 2, delta) of element i of accumulator n. A second copy without conditions,
/// for tiles where all is visible, took 11 % of the instructions away and no time.
template <int Tiles, class Row>
__device__ __forceinline__ void weights_and_gradients(const backward_parameters& p,
                                                      float (&scores)[Tiles][4],
                                                      float (&gradients)[Tiles][4],
                                                      const Row& row) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 statistics = row(i, n);
      const float x = scores[n][i];
      const bool visible = x != -INFINITY;
      // Chosen before the exponential: a register that holds 0 beside it would be held for long.
      const float weight =
          exp2_approximate(visible ? fmaf(x, p.exponent, -statistics.x) : -INFINITY);
      float gradient = weight * (gradients[n][i] - statistics.y);
      if (p.softcap_factor != 0) gradient *= 1 - x * x;
      scores[n][i] = weight;
      gradients[n][i] = visible ? gradient : 0.0F;
    }
  }
}

/// Softens products where there is a softcap: x = tanh(softcap_factor x).
template <int Tiles>
__device__ __forceinline__ void soften(const backward_parameters& p, float (&scores)[Tiles][4]) {
  if (p.softcap_factor == 0) return;
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = tanhf(p.softcap_factor * scores[n][i]);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
