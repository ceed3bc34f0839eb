// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/shared_tile.cuh>
#include <blockattn/cuda/tensor_core.cuh>

/// \file
/// Products of one warp whose left operand has 16 rows; right operands are tiles in shared memory.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Where this lane's chunks lie in the 16 x 16 matrices of left operands and of right operands that
/// are read transposed (`by_rows`), and of right operands that are read as they lie (`by_columns`).
template <int Columns>
struct lane_chunks {
  int by_rows;
  int by_columns;

  __device__ __forceinline__ lane_chunks() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    by_rows = shared_tile<Columns>::offset(lane % 16, lane / 16);
    by_columns = shared_tile<Columns>::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }
};

/// sum = a b^T for the 16 rows of a tile from `a` on and the 8 Tiles rows of a tile `b`. `Unrolled`
/// steps of 16 columns are scheduled together: more hide more latency and take more registers.
template <storage_format Format, int Columns, int Unrolled, int Tiles>
__device__ __forceinline__ void multiply_rows(float (&sum)[Tiles][4],
                                              std::uint32_t a,
                                              std::uint32_t b,
                                              const lane_chunks<Columns>& chunks) {
  using tile = shared_tile<Columns>;
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] = 0;
  }
#pragma unroll Unrolled
  for (int step = 0; step < Columns / 16; ++step) {
    std::uint32_t left[4];
    load_matrices(left, tile::later_chunk(a + chunks.by_rows, 0, 2 * step));
#pragma unroll
    for (int n = 0; n < Tiles; n += 2) {
      std::uint32_t right[4];
      load_matrices(right, tile::later_chunk(b + chunks.by_columns, 8 * n, 2 * step));
      tensor_operand<Format>::multiply_add(sum[n], left, right[0], right[1]);
      tensor_operand<Format>::multiply_add(sum[n + 1], left, right[2], right[3]);
    }
  }
}

/// sum += a b for accumulators `a` (16 rows, 8 Tiles columns), rounded, and 8 Sums columns of as
/// many rows of b.
template <storage_format Format, int Columns, int Sums, int Tiles>
__device__ __forceinline__ void add_product(float (&sum)[Sums][4],
                                            const float (&a)[Tiles][4],
                                            std::uint32_t b,
                                            const lane_chunks<Columns>& chunks) {
  using tile = shared_tile<Columns>;
#pragma unroll
  for (int step = 0; step < Tiles / 2; ++step) {
    const auto& low = a[2 * step];
    const auto& high = a[2 * step + 1];
    const std::uint32_t left[4] = {tensor_operand<Format>::pack(low[0], low[1]),
                                   tensor_operand<Format>::pack(low[2], low[3]),
                                   tensor_operand<Format>::pack(high[0], high[1]),
                                   tensor_operand<Format>::pack(high[2], high[3])};
#pragma unroll
    for (int n = 0; n < Sums; n += 2) {
      std::uint32_t right[4];
      load_transposed(right, tile::later_chunk(b + chunks.by_rows, 16 * step, n));
      tensor_operand<Format>::multiply_add(sum[n], left, right[0], right[1]);
      tensor_operand<Format>::multiply_add(sum[n + 1], left, right[2], right[3]);
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
