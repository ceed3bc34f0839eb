// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/backward_parameters.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// The query rows of one cta of backward_rows_kernel: a tile, a few rows at a time for each half
/// warp, so that many loads are under way.
struct backward_row_group {
  static constexpr int threads = 256;
  static constexpr int lanes = 16;
  static constexpr int rows = 4;
  static constexpr int rows_per_cta = threads / lanes * rows;
};

/// Pass 3 of reference::backward for every query row: lse in base 2 and delta = d_o . o - d_lse;
/// sets the sums of d_q, if there are any, to 0. Grid: padded rows / rows_per_cta, query heads.
template <storage_format Format>
__global__ void __launch_bounds__(backward_row_group::threads)
    backward_rows_kernel(const __grid_constant__ backward_parameters p) {
  using group = backward_row_group;
  using stored = typename tensor_operand<Format>::stored;
  const int head = static_cast<int>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x) % group::lanes;
  const int first_of_cta = static_cast<int>(blockIdx.x) * group::rows_per_cta;
  const std::int64_t padded_row = static_cast<std::int64_t>(head) * p.padded_queries + first_of_cta;
  if (p.sum_columns > 0) {
    auto* const sums = reinterpret_cast<float4*>(p.d_q_sums + padded_row * p.sum_columns);
    for (int i = static_cast<int>(threadIdx.x); i < group::rows_per_cta * p.sum_columns / 4;
         i += group::threads) {
      sums[i] = {0, 0, 0, 0};
    }
  }
  const int first_in_cta = static_cast<int>(threadIdx.x) / group::lanes * group::rows;
  const int first = first_of_cta + first_in_cta;
  float sums[group::rows] = {};
  for (int column = lane * chunk_size; column < p.o.head_dim; column += group::lanes * chunk_size) {
    float o[group::rows][chunk_size], d_o[group::rows][chunk_size];
#pragma unroll
    for (int r = 0; r < group::rows; ++r) {
      const int row = min(first + r, p.query_tokens - 1);
      load_chunk<Format>(o[r], p.o.row<stored>(row, head) + column, chunk_size, p.o.vectors);
      load_chunk<Format>(d_o[r], p.d_o.row<stored>(row, head) + column, chunk_size, p.d_o.vectors);
    }
#pragma unroll
    for (int r = 0; r < group::rows; ++r) {
#pragma unroll
      for (int i = 0; i < chunk_size; ++i) sums[r] = fmaf(o[r][i], d_o[r][i], sums[r]);
    }
  }
  float sum = 0;  // of row `lane`
#pragma unroll
  for (int r = 0; r < group::rows; ++r) {
#pragma unroll
    for (int apart = group::lanes / 2; apart > 0; apart /= 2) {
      sums[r] += __shfl_xor_sync(0xffffffffU, sums[r], apart);
    }
    if (lane == r) sum = sums[r];
  }
  if (lane >= group::rows) return;
  const int row = first + lane;
  float2 result{0, 0};
  if (row < p.query_tokens) {
    constexpr float log2_e = 1.4426950408889634F;
    const float d_lse = p.d_lse != nullptr
                            ? p.d_lse[row * p.d_lse_token_stride + head * p.d_lse_head_stride]
                            : 0.0F;
    const float lse = p.lse[row * p.lse_token_stride + head * p.lse_head_stride];
    result = {lse * log2_e, sum - d_lse};
  }
  p.rows[padded_row + first_in_cta + lane] = result;
}

/// d_sink = -sum over rows of exp(sink - lse) delta, in an order that depends on nothing. Grid: one
/// cta for each head.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    backward_sink_kernel(const __grid_constant__ backward_parameters p) {
  constexpr float log2_e = 1.4426950408889634F;
  __shared__ float sums[Threads];
  const int head = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const float sink = p.sink_logits[head];
  float sum = 0;
  if (sink != -INFINITY) {
    const float2* const rows = p.rows + static_cast<std::int64_t>(head) * p.padded_queries;
    for (int row = thread; row < p.query_tokens; row += Threads) {
      sum -= exp2f(sink * log2_e - rows[row].x) * rows[row].y;
    }
  }
  sums[thread] = sum;
  for (int half = Threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) p.d_sink_logits[head] = sums[0];
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
