// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/storage.hpp>
#include <blockattn/cuda/tile_operands.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Value `at` of a tensor in any format but fp64.
__device__ __forceinline__ float load_value(const void* values,
                                            storage_format format,
                                            std::int64_t at) {
  if (format == storage_format::fp32) return static_cast<const float*>(values)[at];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(values)[at];
  return format == storage_format::bf16 ? tensor_operand<storage_format::bf16>::widen(bits)
                                        : tensor_operand<storage_format::fp16>::widen(bits);
}

/// Loads `Rows` rows from token `first` on of a tensor in another format into a tile, rounding each
/// value once, to nearest even, with all `Threads` threads of the cta, at once. Rows from
/// `row_count` on and columns beyond head_dim become 0 and are not read.
template <storage_format Format, int Columns, int Rows, int Threads>
__device__ __forceinline__ void load_rounded(std::uint32_t tile_address,
                                             const device_view& view,
                                             storage_format format,
                                             std::int64_t first,
                                             int head,
                                             int row_count) {
  using operands = tile_operands<Format, Columns>;
  using tile = typename operands::tile;
#pragma unroll 1
  for (unsigned pair = threadIdx.x; pair < Rows * Columns / 2; pair += Threads) {
    const int row = static_cast<int>(pair / (Columns / 2));
    const int column = static_cast<int>(pair % (Columns / 2) * 2);
    float values[2] = {0, 0};
    if (row < row_count && column < view.head_dim) {
      const std::int64_t at = (first + row) * view.token_stride + head * view.head_stride + column;
      values[0] = load_value(view.data, format, at);
      values[1] = load_value(view.data, format, at + 1);
    }
    const std::uint32_t to =
        tile_address + tile::offset(row, column / tile::chunk_values) +
        column % tile::chunk_values * sizeof(typename operands::operand::stored);
    operands::operand::store_pair(to, values[0], values[1]);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
