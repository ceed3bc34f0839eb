// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/backward_parameters.cuh>
#include <blockattn/cuda/warp_product.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What a key cta does about d_q: nothing, which a kernel of its own computes.
struct no_query_gradient {
  template <int Tiles>
  static __device__ __forceinline__ void keep(std::uint32_t /*kept*/,
                                              const float (&/*gradients*/)[Tiles][4]) {}
  static __device__ __forceinline__ void add(const backward_parameters& /*p*/,
                                             std::uint32_t /*kept*/,
                                             std::uint32_t /*keys*/,
                                             int /*query_tile*/,
                                             int /*head*/) {}
};

/// Adds four neighbouring floats to memory; others add to the same, in any order.
__device__ __forceinline__ void add_in_memory(float* to, const float (&values)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to),
               "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3])
               : "memory");
#else
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(to + i), "f"(values[i])
                 : "memory");
  }
#endif
}

/// Adds what the keys of a cta contribute to d_q of a query tile, d_s k, to fp32 sums in memory
/// (backward_parameters::d_q_sums). Each of four warps takes 32 queries and half of the columns.
/// Sums lie as the accumulators do: a tile's warps, their accumulators, lanes, four floats, so that
/// a warp adds 512 neighbouring bytes at a time.
template <storage_format Format, class Tuning>
class query_gradient_sums {
 public:
  using operands = tile_operands<Format, Tuning::columns>;
  static constexpr int columns = Tuning::columns;
  static constexpr int side = Tuning::side;
  static constexpr int row_tiles = 2;
  static constexpr int column_tiles = columns / 2 / 8;
  static constexpr int steps = Tuning::rows / 16;
  static constexpr int tile_values = side * columns;
  static_assert(side == 64 && Tuning::rows == 64 && Tuning::strip == 64 &&
                backward_warp<Tuning>::threads == 128 &&
                sizeof(typename operands::operand::stored) == 2);
  using kept_tile = shared_tile<side>;  ///< a row for each key

  /// Begins with a barrier. Leaves the gradients of a warp's scores, a row for each key, for all
  /// warps, in place of what they have read, d_o of the tile. (Room of its own saves a barrier and
  /// 0.5 % of the kernel; half of the devices do not have it.)
  template <int Tiles>
  static __device__ __forceinline__ void keep(std::uint32_t kept,
                                              const float (&gradients)[Tiles][4]) {
    __syncthreads();
    const int thread = thread_in_few_registers();
    const int lane = thread % 32;
    const std::uint32_t row =
        kept + kept_tile::offset(thread / 32 * 16 + lane / 4, 0) + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      const std::uint32_t at = row ^ static_cast<std::uint32_t>(n << 4);
      operands::operand::store_pair(at, gradients[n][0], gradients[n][1]);
      operands::operand::store_pair(at + 8 * kept_tile::row_bytes, gradients[n][2],
                                    gradients[n][3]);
    }
  }

  /// Begins with a barrier. Takes what all warps have left; the next barrier lets it go.
  static __device__ __forceinline__ void add(const backward_parameters& p,
                                             std::uint32_t kept,
                                             std::uint32_t keys,
                                             int query_tile,
                                             int head) {
    __syncthreads();
    const int thread = thread_in_few_registers();
    const int lane = thread % 32;
    const int warp = thread / 32;
    // Matrices of an operand, transposed: keys 0 and queries 0, 8, then keys 8.
    const std::uint32_t left =
        kept + kept_tile::offset(lane / 16 * 8 + lane % 8, warp / 2 * 4 + lane / 8 % 2);
    const std::uint32_t right = right_of(keys, lane, warp % 2);
    typename operands::left lefts[steps][row_tiles];
#pragma unroll
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        std::uint32_t fragment[4];
        load_transposed(fragment, kept_tile::later_chunk(left, 16 * step, 2 * m));
        lefts[step][m] = operands::operand::as_left(fragment);
      }
    }
    float* const to = p.d_q_sums + place_of_tile(p, query_tile, head) +
                      (warp * row_tiles * column_tiles * 32 + lane) * 4;
    // One pair of accumulators after the other: all at once, with their additions to memory at the
    // end, spill registers where their steps are unrolled and take 5 % longer where they are not.
#pragma unroll 1
    for (int n = 0; n < column_tiles; n += 2) {
      float sums[row_tiles][2][4] = {};
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        typename operands::right rights[2];
        operands::load_rights_across(rights, right, step, n);
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          operands::operand::multiply_add(sums[m][0], lefts[step][m], rights[0]);
          operands::operand::multiply_add(sums[m][1], lefts[step][m], rights[1]);
        }
      }
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        add_in_memory(to + (m * column_tiles + n) * 128, sums[m][0]);
        add_in_memory(to + (m * column_tiles + n + 1) * 128, sums[m][1]);
      }
    }
  }

  static constexpr int write_threads = 256;

  /// Rounds the sums of a query tile into d_q, with write_threads threads: each takes 8
  /// neighbouring columns of two rows at a time, which the four lanes of an accumulator hold.
  static __device__ __forceinline__ void write(const backward_parameters& p,
                                               int query_tile,
                                               int head) {
    constexpr int units = tile_values / 16;
    static_assert(units % write_threads == 0);
    const float* const tile = p.d_q_sums + place_of_tile(p, query_tile, head);
#pragma unroll
    for (int step = 0; step < units / write_threads; ++step) {
      const int unit = step * write_threads + static_cast<int>(threadIdx.x);
      const int accumulator = unit / 8;  // warp, row tile, column tile
      const int warp = accumulator / (row_tiles * column_tiles);
      const int row_tile = accumulator / column_tiles % row_tiles;
      const int row = warp / 2 * 32 + row_tile * 16 + unit % 8;
      const int column = (warp % 2 * column_tiles + accumulator % column_tiles) * 8;
      const auto* const lanes = reinterpret_cast<const float4*>(tile) + unit * 4;
      float values[2][8];
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const float4 sum = lanes[lane];
        values[0][2 * lane] = sum.x * p.scale;
        values[0][2 * lane + 1] = sum.y * p.scale;
        values[1][2 * lane] = sum.z * p.scale;
        values[1][2 * lane + 1] = sum.w * p.scale;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = query_tile * side + row + 8 * half;
        if (query < p.query_tokens) p.d_q.store_chunk(query, head, column, values[half]);
      }
    }
  }

 private:
  /// Where a lane begins to read keys, in the left or the right half of their columns.
  static __device__ __forceinline__ std::uint32_t right_of(std::uint32_t keys, int lane, int half) {
    const std::uint32_t place = operands::across_place(lane);
    if constexpr (columns / 2 % 64 == 0) {
      return keys + operands::tile::column_bytes(half * (columns / 2)) + place;
    } else {
      return operands::tile::later_chunk(keys + place, 0, half * column_tiles);
    }
  }

  static __device__ __forceinline__ std::int64_t place_of_tile(const backward_parameters& p,
                                                               int query_tile,
                                                               int head) {
    return (static_cast<std::int64_t>(head) * (p.padded_queries / side) + query_tile) * tile_values;
  }
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
