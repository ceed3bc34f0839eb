// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/shared_tile.cuh>
#include <blockattn/cuda/tensor_core.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Reads operands from a tile of `Columns` columns in shared memory, 16 rows or 8 columns at a
/// time. A lane begins at the tile's address plus one of three places.
template <storage_format Format, int Columns>
struct tile_operands {
  using operand = tensor_operand<Format>;
  using left = typename operand::left;
  using right = typename operand::right;
  using tile = shared_tile<Columns, typename operand::stored>;
  static constexpr int steps = tile::row_bytes / 32;  ///< of a product along the rows
  /// Steps to schedule together at most: fp32, whose operands take twice the registers, spills with
  /// more.
  static constexpr int unrolled = operand::accumulators == 2 ? steps : 1;

  /// Of left operands.
  static __device__ __forceinline__ int left_place(int lane) {
    return tile::offset(lane % 16, lane / 16);
  }
  /// Of right operands whose columns are rows of the tile. In this order the two registers of an
  /// operand are neighbours, as the instruction wants.
  static __device__ __forceinline__ int right_place(int lane) {
    return tile::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  }
  /// Of right operands whose rows are rows of the tile.
  static __device__ __forceinline__ int across_place(int lane) {
    if constexpr (operand::accumulators == 2) return tile::offset(lane % 16, lane / 16);
    return tile::offset(lane % 4 * 2, lane / 16) + lane / 4 % 4 * 4;
  }

  /// Rows `row` to row + 16.
  static __device__ __forceinline__ left load_left(std::uint32_t address, int row, int step) {
    std::uint32_t fragment[4];
    load_matrices(fragment, tile::later_chunk(address, row, 2 * step));
    return operand::as_left(fragment);
  }

  /// The operands whose columns are rows 8 n to 8 n + 16 of the tile; n is even.
  static __device__ __forceinline__ void load_rights(right (&pair)[2],
                                                     std::uint32_t address,
                                                     int n,
                                                     int step) {
    std::uint32_t fragment[4];
    load_matrices(fragment, tile::later_chunk(address, 8 * n, 2 * step));
    pair[0] = operand::as_right(fragment[0], fragment[1]);
    pair[1] = operand::as_right(fragment[2], fragment[3]);
  }

  /// The operands that meet the accumulators of a step, columns 8 n to 8 n + 16; n is even. In fp32
  /// the 32 words that a warp reads at a time, columns of four rows, lie in different banks.
  static __device__ __forceinline__ void load_rights_across(right (&pair)[2],
                                                            std::uint32_t address,
                                                            int step,
                                                            int n) {
    std::uint32_t fragment[4];
    if constexpr (operand::accumulators == 2) {
      load_transposed(fragment, tile::later_chunk(address, 16 * step, n));
    } else {
      const std::uint32_t even_row = tile::later_chunk(address, 8 * step, 2 * n);
      fragment[0] = load_word(even_row);
      fragment[1] = load_word((even_row ^ 16U) + tile::row_bytes);
      fragment[2] = load_word(even_row ^ 32U);
      fragment[3] = load_word((even_row ^ 48U) + tile::row_bytes);
    }
    pair[0] = operand::as_right(fragment[0], fragment[1]);
    pair[1] = operand::as_right(fragment[2], fragment[3]);
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
