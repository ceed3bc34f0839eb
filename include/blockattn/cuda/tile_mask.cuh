// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/config.cuh>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A slice within one partial tile, relative to the tile's corner: the pairs with row in
/// [row_begin, row_end), column in [column_begin, column_end), lower <= column - row <= upper.
struct alignas(16) tile_slice {
  std::int16_t row_begin, row_end;
  std::int16_t column_begin, column_end;
  std::int16_t lower, upper;
};

/// Who sees what in a tile: the pairs that its slices cover; without slices all rows see its first
/// `tokens` columns.
struct tile_visibility {
  int slices_begin;
  int slice_count;
  int tokens;  ///< from the tile's first column to the end of the axis
};

/// Bits [0, count) of a word; count may lie outside [0, 32].
__device__ __forceinline__ std::uint32_t bits_below(int count) {
  if (count >= 32) return ~0U;
  return count <= 0 ? 0U : (1U << count) - 1U;
}

/// Sets the scores of a row's columns that have no bit in `visible` to -inf.
template <int RowTiles, int KeyTiles, int Words>
__device__ __forceinline__ void hide_unseen(float (&scores)[RowTiles][KeyTiles][4],
                                            int half,
                                            const std::uint32_t (&visible)[Words]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tile = 0; tile < KeyTiles; ++tile) {
    const std::uint32_t bits = visible[tile / 4] >> (2 * (lane % 4));
    float(&row_scores)[4] = scores[half / 2][tile];
    if ((bits >> (8 * (tile % 4)) & 1U) == 0) row_scores[2 * (half % 2)] = -INFINITY;
    if ((bits >> (8 * (tile % 4)) & 2U) == 0) row_scores[2 * (half % 2) + 1] = -INFINITY;
  }
}

/// Sets the scores of hidden pairs to -inf, in the accumulators of one warp whose first row and
/// column are `first_row` and `first_column` of the tile.
/// A row's visible columns are intervals, one for each slice, gathered as bits, so that any mask
/// costs the same once they are known.
template <int RowTiles, int KeyTiles>
__device__ __forceinline__ void mask_scores(float (&scores)[RowTiles][KeyTiles][4],
                                            const tile_slice* slices,
                                            const tile_visibility& visibility,
                                            int first_row,
                                            int first_column = 0) {
  constexpr int words = (KeyTiles + 3) / 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2 * RowTiles; ++half) {
    const int row = first_row + 8 * half + lane / 4;
    std::uint32_t visible[words];
#pragma unroll
    for (int word = 0; word < words; ++word) {
      const int tokens = visibility.tokens - first_column;
      visible[word] = visibility.slice_count == 0 ? bits_below(tokens - 32 * word) : 0U;
    }
#pragma unroll 1
    for (int i = 0; i < visibility.slice_count; ++i) {
      const tile_slice s = slices[visibility.slices_begin + i];
      if (row < s.row_begin || s.row_end <= row) continue;
      const int begin = max(s.column_begin, row + s.lower) - first_column;
      const int end = min(s.column_end, row + s.upper + 1) - first_column;
#pragma unroll
      for (int word = 0; word < words; ++word) {
        visible[word] |= bits_below(end - 32 * word) & ~bits_below(begin - 32 * word);
      }
    }
    hide_unseen(scores, half, visible);
  }
}

/// Sets the scores of columns from `end_of(half)` on to -inf, in the accumulators of one warp.
template <int RowTiles, int KeyTiles, class EndOf>
__device__ __forceinline__ void hide_columns(float (&scores)[RowTiles][KeyTiles][4],
                                             const EndOf& end_of) {
  constexpr int words = (KeyTiles + 3) / 4;
#pragma unroll
  for (int half = 0; half < 2 * RowTiles; ++half) {
    const int end = end_of(half);
    std::uint32_t visible[words];
#pragma unroll
    for (int word = 0; word < words; ++word) visible[word] = bits_below(end - 32 * word);
    hide_unseen(scores, half, visible);
  }
}

/// Sets the scores of rows from `end` on to -inf, in the accumulators of one warp.
template <int Tiles>
__device__ __forceinline__ void hide_rows(float (&scores)[Tiles][4], int end) {
  const int row = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i / 2 * 8 < end) continue;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) scores[n][i] = -INFINITY;
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
