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

/// Where a row to be loaded lies; what is not read may lie anywhere.
struct source_row {
  const std::uint16_t* data;
  bool is_read;
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

  /// One value of a tile.
  static __device__ __forceinline__ std::uint16_t* element(unsigned char* tile,
                                                           int row,
                                                           int column) {
    return reinterpret_cast<std::uint16_t*>(tile + offset(row, column / 8)) + column % 8;
  }

  /// Bytes from a column to one that is a multiple of 64 columns later.
  static constexpr __device__ __forceinline__ int column_bytes(int columns) { return columns * 2; }

  /// The address of the chunk `rows` rows (a multiple of 8) and `chunks_later` chunks (an even
  /// number, from chunk 0 or 1) behind that at `address`, in a tile that is aligned to row_bytes.
  static __device__ __forceinline__ std::uint32_t later_chunk(std::uint32_t address,
                                                              int rows,
                                                              int chunks_later) {
    return (address ^ static_cast<std::uint32_t>(chunks_later << 4)) +
           static_cast<std::uint32_t>(rows * row_bytes);
  }

  /// Begins to load `Rows` rows with all `Threads` threads of the cta. `next_row(row, later)` is
  /// called for each row + later that a thread takes, later (a constant of the step) rising from 0;
  /// it says where the row lies. Rows that are not read and columns beyond head_dim become 0.
  /// Without `vectors` rows are copied element by element, at once.
  template <int Rows, int Threads, class NextRow>
  static __device__ __forceinline__ void load_rows(std::uint32_t tile,
                                                   int head_dim,
                                                   int vectors,
                                                   const NextRow& next_row) {
    static_assert(Threads % chunks == 0 && Rows * chunks % Threads == 0);
    constexpr int rows_per_step = Threads / chunks;
    const int chunk = static_cast<int>(threadIdx.x) % chunks;
    const int row = static_cast<int>(threadIdx.x) / chunks;
    const bool in_row = chunk * 8 < head_dim;
    const int column = in_row ? chunk * 8 : 0;
    if (vectors) {
#pragma unroll
      for (int later = 0; later < Rows; later += rows_per_step) {
        const source_row from = next_row(row, later);
        copy_async(tile + offset(row + later, chunk), from.data + column,
                   in_row && from.is_read ? 16 : 0);
      }
    } else {
#pragma unroll 1
      for (int later = 0; later < Rows; later += rows_per_step) {
        const source_row from = next_row(row, later);
        std::uint32_t pairs[4] = {0, 0, 0, 0};
        if (in_row && from.is_read) {
#pragma unroll
          for (int pair = 0; pair < 4; ++pair) {
            const std::uint16_t* const values = from.data + column + 2 * pair;
            pairs[pair] = values[0] | static_cast<std::uint32_t>(values[1]) << 16;
          }
        }
        asm volatile(
            "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(tile + offset(row + later, chunk)),
            "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
            : "memory");
      }
    }
  }

  /// Keeps the bits of `kept` in every pair of values of a tile, and flips those of `flipped`.
  template <int Rows, int Threads>
  static __device__ __forceinline__ void change_bits(std::uint32_t tile,
                                                     std::uint32_t kept,
                                                     std::uint32_t flipped) {
    for (int at = static_cast<int>(threadIdx.x) * 4; at < Rows * row_bytes; at += Threads * 4) {
      std::uint32_t pair;
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(tile + at) : "memory");
      pair = (pair & kept) ^ flipped;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(tile + at), "r"(pair) : "memory");
    }
  }

  /// `load_rows` of rows of a tensor that follow each other; `is_read(row, later)` tells which are
  /// read.
  template <int Rows, int Threads, class IsRead>
  static __device__ __forceinline__ void load(std::uint32_t tile,
                                              const std::uint16_t* first_row,
                                              const device_view& view,
                                              const IsRead& is_read) {
    const std::uint16_t* at =
        first_row + static_cast<int>(threadIdx.x) / chunks * view.token_stride;
    const std::int64_t step = Threads / chunks * view.token_stride;
    load_rows<Rows, Threads>(tile, view.head_dim, view.vectors, [&](int row, int later) {
      const source_row from{at, is_read(row, later)};
      at += step;
      return from;
    });
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
