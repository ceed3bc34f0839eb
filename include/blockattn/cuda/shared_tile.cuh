// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/async_copy.cuh>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// A (tokens, heads, head_dim) tensor in device memory.
struct device_view {
  const void* data;
  std::int64_t token_stride;  ///< elements
  std::int64_t head_stride;   ///< elements
  int head_dim;
  int vectors;  ///< 1 when all rows begin at multiples of 16 bytes

  template <class Stored = std::uint16_t>
  __device__ __forceinline__ const Stored* row(std::int64_t token, std::int64_t head) const {
    return static_cast<const Stored*>(data) + token * token_stride + head * head_stride;
  }
};

/// Where a row to be loaded lies; what is not read may lie anywhere.
template <class Stored>
struct source_row {
  const Stored* data;
  bool is_read;
};

/// The 32-bit word `i` of stored values.
__device__ __forceinline__ std::uint32_t stored_word(const std::uint16_t* values, int i) {
  return values[2 * i] | static_cast<std::uint32_t>(values[2 * i + 1]) << 16;
}
__device__ __forceinline__ std::uint32_t stored_word(const float* values, int i) {
  return __float_as_uint(values[i]);
}

/// Rows of `Columns` values, 16-bit or float, in shared memory. Chunk c (16 bytes) of row r lies in
/// place c xor (r & 7): eight rows of one chunk, as ldmatrix takes them, fall into different banks.
template <int Columns, class Stored = std::uint16_t>
struct shared_tile {
  static constexpr int chunk_values = 16 / static_cast<int>(sizeof(Stored));
  static constexpr int chunks = Columns / chunk_values;
  static constexpr int row_bytes = Columns * static_cast<int>(sizeof(Stored));

  /// Byte offset of a chunk.
  static __device__ __forceinline__ int offset(int row, int chunk) {
    return row * row_bytes + ((chunk ^ (row & 7)) << 4);
  }

  /// One value of a tile.
  static __device__ __forceinline__ Stored* element(unsigned char* tile, int row, int column) {
    return reinterpret_cast<Stored*>(tile + offset(row, column / chunk_values)) +
           column % chunk_values;
  }

  /// Bytes from a column to one that is a multiple of 64 columns later.
  static constexpr __device__ __forceinline__ int column_bytes(int columns) {
    return columns * static_cast<int>(sizeof(Stored));
  }

  /// The address of the chunk `rows` rows (a multiple of 8) and `chunks_later` chunks (an even
  /// number that has no bit of the chunk there) behind that at `address`, in a tile that is aligned
  /// to row_bytes.
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
                                                   const NextRow& next_row,
                                                   int thread = static_cast<int>(threadIdx.x)) {
    static_assert(Threads % chunks == 0 && Rows * chunks % Threads == 0);
    constexpr int rows_per_step = Threads / chunks;
    const int chunk = thread % chunks;
    const int row = thread / chunks;
    const bool in_row = chunk * chunk_values < head_dim;
    const int column = in_row ? chunk * chunk_values : 0;
    if (vectors) {
#pragma unroll
      for (int later = 0; later < Rows; later += rows_per_step) {
        const source_row<Stored> from = next_row(row, later);
        copy_async(tile + offset(row + later, chunk), from.data + column,
                   in_row && from.is_read ? 16 : 0);
      }
    } else {
#pragma unroll 1
      for (int later = 0; later < Rows; later += rows_per_step) {
        const source_row<Stored> from = next_row(row, later);
        std::uint32_t words[4] = {0, 0, 0, 0};
        if (in_row && from.is_read) {
#pragma unroll
          for (int i = 0; i < 4; ++i) words[i] = stored_word(from.data + column, i);
        }
        asm volatile(
            "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(tile + offset(row + later, chunk)),
            "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
            : "memory");
      }
    }
  }

  /// Keeps the bits of `kept` in every 32-bit word of a tile, and flips those of `flipped`.
  template <int Rows, int Threads>
  static __device__ __forceinline__ void change_bits(std::uint32_t tile,
                                                     std::uint32_t kept,
                                                     std::uint32_t flipped) {
    for (int at = static_cast<int>(threadIdx.x) * 4; at < Rows * row_bytes; at += Threads * 4) {
      std::uint32_t word;
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(tile + at) : "memory");
      word = (word & kept) ^ flipped;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(tile + at), "r"(word) : "memory");
    }
  }

  /// `load_rows` of rows of a tensor that follow each other; `is_read(row, later)` tells which are
  /// read.
  template <int Rows, int Threads, class IsRead>
  static __device__ __forceinline__ void load(std::uint32_t tile,
                                              const Stored* first_row,
                                              const device_view& view,
                                              const IsRead& is_read,
                                              int thread = static_cast<int>(threadIdx.x)) {
    const Stored* at = first_row + thread / chunks * view.token_stride;
    const std::int64_t step = Threads / chunks * view.token_stride;
    load_rows<Rows, Threads>(
        tile, view.head_dim, view.vectors,
        [&](int row, int later) {
          const source_row<Stored> from{at, is_read(row, later)};
          at += step;
          return from;
        },
        thread);
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
