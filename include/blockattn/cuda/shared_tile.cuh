// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/async_copy.cuh>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A (tokens, heads, head_dim) tensor of 16-bit values in device memory.
struct device_view {
  const std::uint16_t* data;
  std::int64_t token_stride;  ///< elements
  std::int64_t head_stride;   ///< elements
  int head_dim;
  int vectors;  ///< 1 when all rows begin at multiples of 16 bytes

  __device__ __forceinline__ const std::uint16_t* row(std::int64_t token, std::int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

/// Rows of `Columns` 16-bit values in shared memory. Chunk c (16 bytes) of row r lies in place
/// c xor (r & 7): eight rows of one chunk, as ldmatrix takes them, fall into different banks.
template <int Columns>
struct shared_tile {
  static constexpr int chunks = Columns / 8;
  static constexpr int row_bytes = Columns * 2;

  /// Byte offset of a chunk.
  static __device__ __forceinline__ int offset(int row, int chunk) {
    return row * row_bytes + ((chunk ^ (row & 7)) << 4);
  }

  /// The address of the chunk `rows` rows (a multiple of 8) and `chunks_later` chunks (an even
  /// number, from chunk 0 or 1) behind that at `address`, in a tile that is aligned to row_bytes.
  static __device__ __forceinline__ std::uint32_t later_chunk(std::uint32_t address,
                                                              int rows,
                                                              int chunks_later) {
    return (address ^ static_cast<std::uint32_t>(chunks_later << 4)) +
           static_cast<std::uint32_t>(rows * row_bytes);
  }

  /// Begins to load `Rows` rows of a tensor with all `Threads` threads of the cta. Rows row + later
  /// for which `is_read(row, later)` is false (later is a constant of the step) and columns beyond
  /// head_dim become 0 and are not read. Rows that are not aligned to 16 bytes are copied element
  /// by element, at once.
  template <int Rows, int Threads, class IsRead>
  static __device__ __forceinline__ void load(std::uint32_t tile,
                                              const std::uint16_t* first_row,
                                              const device_view& view,
                                              const IsRead& is_read) {
    static_assert(Threads % chunks == 0 && Rows * chunks % Threads == 0);
    constexpr int rows_per_step = Threads / chunks;
    const int chunk = static_cast<int>(threadIdx.x) % chunks;
    const int row = static_cast<int>(threadIdx.x) / chunks;
    const bool in_row = chunk * 8 < view.head_dim;
    const std::uint16_t* from = first_row + row * view.token_stride + (in_row ? chunk * 8 : 0);
    const std::int64_t step = rows_per_step * view.token_stride;
    if (view.vectors) {
#pragma unroll
      for (int later = 0; later < Rows; later += rows_per_step, from += step) {
        copy_async(tile + offset(row + later, chunk), from, in_row && is_read(row, later) ? 16 : 0);
      }
    } else {
#pragma unroll 1
      for (int later = 0; later < Rows; later += rows_per_step, from += step) {
        std::uint32_t pairs[4] = {0, 0, 0, 0};
        if (in_row && is_read(row, later)) {
#pragma unroll
          for (int pair = 0; pair < 4; ++pair) {
            pairs[pair] = from[2 * pair] | static_cast<std::uint32_t>(from[2 * pair + 1]) << 16;
          }
        }
        asm volatile(
            "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(tile + offset(row + later, chunk)),
            "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
            : "memory");
      }
    }
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
