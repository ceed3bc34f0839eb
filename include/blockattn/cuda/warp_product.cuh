// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/tile_operands.cuh>

/// \file
/// Products of one warp; right operands are tiles in shared memory.

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A lane's places in the tiles of a kernel.
template <storage_format Format, int Columns>
struct lane_places {
  using operands = tile_operands<Format, Columns>;
  int left;
  int right;
  int across;

  __device__ __forceinline__ lane_places() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    left = operands::left_place(lane);
    right = operands::right_place(lane);
    across = operands::across_place(lane);
  }
};

/// sum = a b^T for 16 RowTiles rows and the 8 Tiles rows of a tile `b`. `left_of(r, step)` is the
/// left operand of 16 rows. `Unrolled` steps are scheduled together: more hide more latency and
/// take more registers.
template <int Unrolled, storage_format Format, int Columns, int RowTiles, int Tiles, class LeftOf>
__device__ __forceinline__ void multiply_rows(float (&sum)[RowTiles][Tiles][4],
                                              const LeftOf& left_of,
                                              std::uint32_t b,
                                              const lane_places<Format, Columns>& places) {
  using operands = tile_operands<Format, Columns>;
#pragma unroll
  for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[r][n][i] = 0;
    }
  }
#pragma unroll Unrolled
  for (int step = 0; step < operands::steps; ++step) {
    typename operands::left left[RowTiles];
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) left[r] = left_of(r, step);
#pragma unroll
    for (int n = 0; n < Tiles; n += 2) {
      typename operands::right right[2];
      operands::load_rights(right, b + places.right, n, step);
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        operands::operand::multiply_add(sum[r][n], left[r], right[0]);
        operands::operand::multiply_add(sum[r][n + 1], left[r], right[1]);
      }
    }
  }
}

/// The left operands of `multiply_rows` from a tile at `a`.
template <storage_format Format, int Columns>
__device__ __forceinline__ auto lefts_at(std::uint32_t a,
                                         const lane_places<Format, Columns>& places) {
  return [a, &places](int r, int step) {
    return tile_operands<Format, Columns>::load_left(a + places.left, 16 * r, step);
  };
}

/// sum += a b for accumulators `a` (16 RowTiles rows, 8 Tiles columns), rounded, and 8 Sums columns
/// of as many rows of b.
template <storage_format Format, int Columns, int RowTiles, int Sums, int Tiles>
__device__ __forceinline__ void add_product(float (&sum)[RowTiles][Sums][4],
                                            const float (&a)[RowTiles][Tiles][4],
                                            std::uint32_t b,
                                            const lane_places<Format, Columns>& places) {
  using operands = tile_operands<Format, Columns>;
  constexpr int accumulators = operands::operand::accumulators;
#pragma unroll
  for (int step = 0; step < Tiles / accumulators; ++step) {
    typename operands::left left[RowTiles];
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
      float values[accumulators][4];
#pragma unroll
      for (int n = 0; n < accumulators; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) values[n][i] = a[r][accumulators * step + n][i];
      }
      left[r] = operands::operand::as_left(values);
    }
#pragma unroll
    for (int n = 0; n < Sums; n += 2) {
      typename operands::right right[2];
      operands::load_rights_across(right, b + places.across, step, n);
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        operands::operand::multiply_add(sum[r][n], left[r], right[0]);
        operands::operand::multiply_add(sum[r][n + 1], left[r], right[1]);
      }
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
