// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index.hpp>
#include <blockattn/cuda/plan_lists.cuh>
#include <blockattn/cuda/shared_tile.cuh>
#include <blockattn/cuda/tensor_core.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// How one of the backward kernels is cut: a cta owns `rows` rows of the outer axis and walks over
/// tiles of `side` rows of the inner one. Its warps share its rows, the inner rows of each tile
/// (and add up in the end), and the columns of the gradients.
struct backward_cut {
  int side = 64;
  int rows = 64;
  int row_tiles = 1;  ///< 16 rows each, of one warp: a right operand is read once for all
  int inner_warps = 1;
  int column_warps = 1;  ///< which form the same scores
  int strip = 64;        ///< inner rows of which a warp holds scores at a time
  int stages = 2;        ///< tiles of the inner axis in shared memory
  int ctas_per_processor = 2;
};

template <backward_cut Cut>
struct backward_shape {
  static constexpr int side = Cut.side;
  static constexpr int rows = Cut.rows;
  static constexpr int row_tiles = Cut.row_tiles;
  static constexpr int inner_warps = Cut.inner_warps;
  static constexpr int column_warps = Cut.column_warps;
  static constexpr int strip = Cut.strip;
  static constexpr int stages = Cut.stages;
  static constexpr int ctas_per_processor = Cut.ctas_per_processor;
  static constexpr int parts = side / rows;  ///< of an outer tile
  static constexpr int row_warps = rows / (16 * row_tiles);
  static constexpr int threads = row_warps * inner_warps * column_warps * 32;
};

/// The shapes for head dims up to Columns; `Stored` is what tensors are stored as: 16 bits, or
/// float. Shared memory is what feeds the tensor cores too slowly, so a warp of the query kernel
/// takes 32 rows; d_k and d_v of as many would take all registers.
template <int Columns, class Stored = std::uint16_t>
struct backward_tuning {
  static constexpr int columns = Columns;
  using query = backward_shape<backward_cut{.row_tiles = 2, .inner_warps = 2, .strip = 32}>;
  using key = backward_shape<backward_cut{}>;
};

/// 96 KiB of tiles, which compute capability 8.6 has, as the next two have. d_k and d_v of all
/// columns would take 256 registers.
template <>
struct backward_tuning<256> {
  static constexpr int columns = 256;
  using query = backward_shape<backward_cut{.rows = 32, .column_warps = 2, .stages = 1}>;
  using key = query;
};

template <>
struct backward_tuning<64, float> {
  static constexpr int columns = 64;
  using query = backward_shape<backward_cut{.strip = 16}>;
  using key = query;
};

template <>
struct backward_tuning<128, float> {
  static constexpr int columns = 128;
  using query =
      backward_shape<backward_cut{.rows = 32, .column_warps = 2, .strip = 16, .stages = 1}>;
  using key = query;
};

template <>
struct backward_tuning<256, float> {
  static constexpr int columns = 256;
  using query = backward_shape<backward_cut{
      .side = 32, .rows = 16, .column_warps = 4, .strip = 16, .stages = 1}>;
  using key = query;
};

/// Calls f with the tuning for two head dims of at most 256.
template <class Stored, class F>
constexpr auto with_backward_tuning(index_t head_dim, index_t value_dim, const F& f) {
  const index_t dim = std::max(head_dim, value_dim);
  if (dim <= 64) return f(backward_tuning<64, Stored>{});
  if (dim <= 128) return f(backward_tuning<128, Stored>{});
  return f(backward_tuning<256, Stored>{});
}

/// What a warp of a backward cta owns.
template <class Shape, int Columns>
struct backward_warp {
  static constexpr int columns = Columns / Shape::column_warps;

  static __device__ __forceinline__ int number() { return static_cast<int>(threadIdx.x / 32); }
  static __device__ __forceinline__ int first_column() {
    return number() % Shape::column_warps * columns;
  }
  /// Of each tile.
  static __device__ __forceinline__ int inner() {
    return number() / Shape::column_warps % Shape::inner_warps;
  }
  static __device__ __forceinline__ int first_row() {
    return number() / (Shape::column_warps * Shape::inner_warps) * 16 * Shape::row_tiles;
  }
};

/// A gradient in device memory, in one of three formats.
struct gradient_rows {
  void* data;
  std::int64_t token_stride, head_stride;  ///< elements
  storage_format format;
  int head_dim;

  /// Stores two neighbouring values of a row, each rounded once.
  __device__ __forceinline__ void store(
      std::int64_t token, std::int64_t head, int column, float first, float second) const {
    if (column >= head_dim) return;
    const std::int64_t at = token * token_stride + head * head_stride + column;
    if (format == storage_format::fp32) {
      static_cast<float*>(data)[at] = first;
      static_cast<float*>(data)[at + 1] = second;
      return;
    }
    const std::uint32_t pair = format == storage_format::bf16
                                   ? tensor_operand<storage_format::bf16>::pack(first, second)
                                   : tensor_operand<storage_format::fp16>::pack(first, second);
    auto* const values = static_cast<std::uint16_t*>(data);
    values[at] = static_cast<std::uint16_t>(pair);
    values[at + 1] = static_cast<std::uint16_t>(pair >> 16);
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
/// place; hidden pairs, whose score is -inf, get 0 whatever else they hold. `row(r, n, i)` is the
/// float2 (lse in base 2, delta) of element i of accumulator n of 16 rows.
template <int RowTiles, int Tiles, class Row>
__device__ __forceinline__ void weights_and_gradients(const backward_parameters& p,
                                                      float (&scores)[RowTiles][Tiles][4],
                                                      float (&gradients)[RowTiles][Tiles][4],
                                                      const Row& row) {
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 statistics = row(r, n, i);
        const float x = scores[r][n][i];
        const bool visible = x != -INFINITY;
        const float weight = visible ? exp2_approximate(fmaf(x, p.exponent, -statistics.x)) : 0.0F;
        float gradient = weight * (gradients[r][n][i] - statistics.y);
        if (p.softcap_factor != 0) gradient *= 1 - x * x;
        scores[r][n][i] = weight;
        gradients[r][n][i] = visible ? gradient : 0.0F;
      }
    }
  }
}

/// Softens products where there is a softcap: x = tanh(softcap_factor x).
template <int RowTiles, int Tiles>
__device__ __forceinline__ void soften(const backward_parameters& p,
                                       float (&scores)[RowTiles][Tiles][4]) {
  if (p.softcap_factor == 0) return;
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[r][n][i] = tanhf(p.softcap_factor * scores[r][n][i]);
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
