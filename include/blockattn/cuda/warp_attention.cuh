// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/online_softmax.cuh>
#include <blockattn/cuda/part_merge.cuh>
#include <blockattn/cuda/shared_tile.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Negates the queries of a tile, or makes them 0, with all threads of a cta.
template <storage_format Format, int Rows, int Threads, class Tile>
__device__ __forceinline__ void change_queries(Tile /*tile*/,
                                               std::uint32_t queries,
                                               query_change change) {
  const bool keeps = change != query_change::zero;
  Tile::template change_bits<Rows, Threads>(queries, keeps ? ~0U : 0U,
                                            keeps ? tensor_operand<Format>::two_signs : 0U);
}

/// Where a row of a query tile goes.
struct row_place {
  std::int64_t token;
  int head;
  bool exists;  ///< false behind the last row
};

/// The 16 RowTiles rows of queries that one warp owns, and their attention to tiles of 8 KeyTiles
/// keys (FlashAttention-2, arXiv 2307.08691, algorithm 1). Queries, keys and values lie in shared
/// memory, Columns wide; scores, weights and sums of weighted values stay in registers.
template <storage_format Format, int Columns, int RowTiles, int KeyTiles>
class warp_attention {
 public:
  static constexpr int rows = 16 * RowTiles;
  static constexpr int halves = 2 * RowTiles;  ///< rows that one lane holds
  static constexpr int value_tiles = Columns / 8;
  using tile = shared_tile<Columns>;

  /// `queries`: address of the warp's first row.
  __device__ __forceinline__ explicit warp_attention(std::uint32_t queries)
      : queries_(queries),
        lane_(static_cast<int>(threadIdx.x) % 32),
        lane_offset_(tile::offset(lane_ % 16, lane_ / 16)) {}

  /// Attends to the keys and values at two addresses. `mask(scores)` hides pairs.
  template <class Mask>
  __device__ __forceinline__ void attend(const score_transform& transform,
                                         std::uint32_t keys,
                                         std::uint32_t values,
                                         const Mask& mask) {
    float scores[RowTiles][KeyTiles][4];
    multiply_keys(keys, scores);
    softmax_.prepare(transform, scores);
    mask(scores);
    softmax_.take_maxima(transform, scores, values_);
    multiply_values(transform, values, scores);
  }

  /// Row `half` (of `halves`) that this lane holds, among the warp's rows.
  __device__ __forceinline__ int row_of(int half) const { return 8 * half + lane_ / 4; }

  /// Ends the rows, whose keys are one partition, and writes them where `place_of(row)` says.
  template <class PlaceOf>
  __device__ __forceinline__ void write_rows(const output_rows& out,
                                             const PlaceOf& place_of,
                                             const partition_weight& weight) {
#pragma unroll
    for (int half = 0; half < halves; ++half) {
      const row_place place = place_of(row_of(half));
      row_statistics statistics = softmax_.row(half);
      float factor = 0;
      if (place.exists) {
        const float shift = weight.shift_log2(statistics);
        statistics.max_log2 += shift;
        if (shift == -INFINITY) statistics.sum = 0;  // the weight takes the partition out
        factor = finish_row(out, statistics, place.token, place.head, lane_ % 4 == 0);
      }
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        float* const pair = &values_[half / 2][n][half % 2 * 2];
        pair[0] *= factor;
        pair[1] *= factor;
      }
    }
    if (out.vectors != 0 && out.format == Format) {
      write_vectors(out, place_of);
    } else {
      write_elements(out, place_of);
    }
  }

  /// Leaves statistics and sums of weighted values, (rows) and (rows, Columns), for a merge.
  template <class PlaceOf>
  __device__ __forceinline__ void write_part(row_statistics* part_rows,
                                             float* part_values,
                                             const PlaceOf& place_of) const {
#pragma unroll
    for (int half = 0; half < halves; ++half) {
      const int row = row_of(half);
      const row_statistics statistics = softmax_.row(half);
      if (!place_of(row).exists) continue;
      if (lane_ % 4 == 0) part_rows[row] = statistics;
      float* const out = part_values + row * Columns + lane_ % 4 * 2;
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        const float* const pair = &values_[half / 2][n][half % 2 * 2];
        *reinterpret_cast<float2*>(out + n * 8) = float2{pair[0], pair[1]};
      }
    }
  }

  __device__ __forceinline__ online_softmax<RowTiles>& softmax() { return softmax_; }
  /// Sums of weighted values, in accumulators.
  __device__ __forceinline__ float (&values())[RowTiles][value_tiles][4] { return values_; }

 private:
  /// scores = queries x keys^T.
  __device__ __forceinline__ void multiply_keys(std::uint32_t keys,
                                                float (&scores)[RowTiles][KeyTiles][4]) const {
#pragma unroll
    for (int r = 0; r < RowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < KeyTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[r][n][i] = 0;
      }
    }
    const std::uint32_t query_chunk = queries_ + lane_offset_;
    // In this order a product's two registers of keys are neighbours, as the instruction wants.
    const std::uint32_t key_chunk = keys + tile::offset(lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
#pragma unroll
    for (int step = 0; step < Columns / 16; ++step) {
      std::uint32_t query[RowTiles][4];
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        load_matrices(query[r], tile::later_chunk(query_chunk, 16 * r, 2 * step));
      }
#pragma unroll
      for (int n = 0; n < KeyTiles; n += 2) {
        std::uint32_t key[4];
        load_matrices(key, tile::later_chunk(key_chunk, 8 * n, 2 * step));
#pragma unroll
        for (int r = 0; r < RowTiles; ++r) {
          tensor_operand<Format>::multiply_add(scores[r][n], query[r], key[0], key[1]);
          tensor_operand<Format>::multiply_add(scores[r][n + 1], query[r], key[2], key[3]);
        }
      }
    }
  }

  /// values_ += weights x values. The weights of the next 16 keys are computed beside the products
  /// of the current ones.
  __device__ __forceinline__ void multiply_values(const score_transform& transform,
                                                  std::uint32_t values,
                                                  const float (&scores)[RowTiles][KeyTiles][4]) {
    const std::uint32_t value_chunk = values + lane_offset_;
#pragma unroll
    for (int step = 0; step < KeyTiles / 2; ++step) {
      std::uint32_t weights[RowTiles][4];
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        softmax_.template weights<Format>(transform, r, scores[r][2 * step],
                                          scores[r][2 * step + 1], weights[r]);
      }
#pragma unroll
      for (int n = 0; n < value_tiles; n += 2) {
        std::uint32_t value[4];
        load_transposed(value, tile::later_chunk(value_chunk, 16 * step, n));
#pragma unroll
        for (int r = 0; r < RowTiles; ++r) {
          tensor_operand<Format>::multiply_add(values_[r][n], weights[r], value[0], value[1]);
          tensor_operand<Format>::multiply_add(values_[r][n + 1], weights[r], value[2], value[3]);
        }
      }
    }
  }

  /// Through the warp's own rows of the query tile, which nobody reads any more, so that whole rows
  /// are written at once.
  template <class PlaceOf>
  __device__ __forceinline__ void write_vectors(const output_rows& out,
                                                const PlaceOf& place_of) const {
    __syncwarp();
#pragma unroll
    for (int half = 0; half < halves; ++half) {
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        const float* const pair = &values_[half / 2][n][half % 2 * 2];
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(queries_ + tile::offset(row_of(half), n) +
                                                     lane_ % 4 * 4),
                     "r"(tensor_operand<Format>::pack(pair[0], pair[1]))
                     : "memory");
      }
    }
    __syncwarp();
#pragma unroll 4
    for (int at = lane_; at < rows * tile::chunks; at += 32) {
      const int row = at / tile::chunks;
      const int chunk = at % tile::chunks;
      uint4 values;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(values.x), "=r"(values.y), "=r"(values.z), "=r"(values.w)
                   : "r"(queries_ + tile::offset(row, chunk))
                   : "memory");
      const row_place place = place_of(row);
      if (place.exists && chunk * 8 < out.value_dim) {
        auto* const o = static_cast<std::uint16_t*>(out.o);
        *reinterpret_cast<uint4*>(o + out.element(place.token, place.head) + chunk * 8) = values;
      }
    }
  }

  template <class PlaceOf>
  __device__ __forceinline__ void write_elements(const output_rows& out,
                                                 const PlaceOf& place_of) const {
#pragma unroll
    for (int half = 0; half < halves; ++half) {
      const row_place place = place_of(row_of(half));
      if (!place.exists) continue;
      const std::int64_t row = out.element(place.token, place.head);
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        const int column = n * 8 + lane_ % 4 * 2;
        if (column >= out.value_dim) continue;
        out.store(row + column, values_[half / 2][n][half % 2 * 2]);
        out.store(row + column + 1, values_[half / 2][n][half % 2 * 2 + 1]);
      }
    }
  }

  std::uint32_t queries_;
  int lane_;
  int lane_offset_;  ///< of the chunk that this lane names for ldmatrix, of queries and values
  online_softmax<RowTiles> softmax_;
  float values_[RowTiles][value_tiles][4] = {};
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
