// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/online_softmax.cuh>
#include <blockattn/cuda/part_merge.cuh>
#include <blockattn/cuda/tile_operands.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Negates the queries of a tile, or makes them 0, with all threads of a cta.
template <storage_format Format, int Rows, int Threads, class Tile>
__device__ __forceinline__ void change_queries(Tile /*tile*/,
                                               std::uint32_t queries,
                                               query_change change) {
  const bool keeps = change != query_change::zero;
  Tile::template change_bits<Rows, Threads>(queries, keeps ? ~0U : 0U,
                                            keeps ? tensor_operand<Format>::sign_bits : 0U);
}

/// Where a row of a query tile goes.
struct row_place {
  std::int64_t token;
  int head;
  bool exists;  ///< false behind the last row
};

/// The 16 RowTiles rows of queries that one warp owns, and their attention to tiles of 8 KeyTiles
/// keys (FlashAttention-2, arXiv 2307.08691, algorithm 1). Queries, keys and values lie in shared
/// memory, Columns wide; scores, weights and sums of weighted values stay in registers. With
/// ColumnWarps > 1 as many neighbouring warps own the same rows and a run of value columns each.
template <storage_format Format, int Columns, int RowTiles, int KeyTiles, int ColumnWarps = 1>
class warp_attention {
 public:
  static constexpr int rows = 16 * RowTiles;
  static constexpr int halves = 2 * RowTiles;  ///< rows that one lane holds
  static constexpr int value_columns = Columns / ColumnWarps;
  static constexpr int value_tiles = value_columns / 8;
  using operands = tile_operands<Format, Columns>;
  using operand = typename operands::operand;
  using tile = typename operands::tile;

  /// `queries`: address of the warp's first row.
  __device__ __forceinline__ explicit warp_attention(std::uint32_t queries)
      : queries_(queries),
        lane_(static_cast<int>(threadIdx.x) % 32),
        query_place_(operands::left_place(lane_)) {}

  /// Attends to the keys and values at two addresses. `mask(scores)` hides pairs. `transform_of()`
  /// is the score_transform, asked for when the products of keys have left registers for it.
  template <class TransformOf, class Mask>
  __device__ __forceinline__ void attend(const TransformOf& transform_of,
                                         std::uint32_t keys,
                                         std::uint32_t values,
                                         const Mask& mask) {
    float scores[RowTiles][KeyTiles][4];
    multiply_keys(keys, scores);
    const score_transform transform = transform_of();
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
        factor = finish_row(out, statistics, place.token, place.head, writes_statistics());
      }
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        float* const pair = &values_[half / 2][n][half % 2 * 2];
        pair[0] *= factor;
        pair[1] *= factor;
      }
    }
    if (ColumnWarps == 1 && out.vectors != 0 && out.format == Format) {
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
      if (writes_statistics()) part_rows[row] = statistics;
      float* const out = part_values + row * Columns + first_column() + lane_ % 4 * 2;
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
  /// Of the warp's values.
  static __device__ __forceinline__ int first_column() {
    return static_cast<int>(threadIdx.x / 32) % ColumnWarps * value_columns;
  }
  __device__ __forceinline__ bool writes_statistics() const {
    return lane_ % 4 == 0 && first_column() == 0;
  }

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
    const std::uint32_t query_chunk = queries_ + query_place_;
    const std::uint32_t key_chunk = keys + operands::right_place(lane_);
#pragma unroll operands::unrolled
    for (int step = 0; step < operands::steps; ++step) {
      typename operands::left query[RowTiles];
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        query[r] = operands::load_left(query_chunk, 16 * r, step);
      }
#pragma unroll
      for (int n = 0; n < KeyTiles; n += 2) {
        typename operands::right key[2];
        operands::load_rights(key, key_chunk, n, step);
#pragma unroll
        for (int r = 0; r < RowTiles; ++r) {
          operand::multiply_add(scores[r][n], query[r], key[0]);
          operand::multiply_add(scores[r][n + 1], query[r], key[1]);
        }
      }
    }
  }

  /// values_ += weights x values. The weights of the next step's keys are computed beside the
  /// products of the current ones.
  __device__ __forceinline__ void multiply_values(const score_transform& transform,
                                                  std::uint32_t values,
                                                  const float (&scores)[RowTiles][KeyTiles][4]) {
    constexpr int accumulators = operand::accumulators;
    const std::uint32_t value_chunk =
        values + tile::column_bytes(first_column()) + operands::across_place(lane_);
#pragma unroll
    for (int step = 0; step < KeyTiles / accumulators; ++step) {
      typename operands::left weights[RowTiles];
#pragma unroll
      for (int r = 0; r < RowTiles; ++r) {
        float of_step[accumulators][4];
#pragma unroll
        for (int n = 0; n < accumulators; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) of_step[n][i] = scores[r][accumulators * step + n][i];
        }
        softmax_.weights(transform, r, of_step);
        weights[r] = operand::as_left(of_step);
      }
#pragma unroll
      for (int n = 0; n < value_tiles; n += 2) {
        typename operands::right value[2];
        operands::load_rights_across(value, value_chunk, step, n);
#pragma unroll
        for (int r = 0; r < RowTiles; ++r) {
          operand::multiply_add(values_[r][n], weights[r], value[0]);
          operand::multiply_add(values_[r][n + 1], weights[r], value[1]);
        }
      }
    }
  }

  /// Through the warp's own rows of the query tile, which nobody reads any more, so that whole rows
  /// are written at once.
  template <class PlaceOf>
  __device__ __forceinline__ void write_vectors(const output_rows& out,
                                                const PlaceOf& place_of) const {
    // To the lane's pair of values in eight columns; unsigned, so that it is no division.
    const unsigned bytes = static_cast<unsigned>(lane_) % 4 * 2 *
                           static_cast<unsigned>(sizeof(typename operand::stored));
    __syncwarp();
#pragma unroll
    for (int half = 0; half < halves; ++half) {
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        const float* const pair = &values_[half / 2][n][half % 2 * 2];
        const int chunk = n * 8 / tile::chunk_values + static_cast<int>(bytes / 16);
        operand::store_pair(queries_ + tile::offset(row_of(half), chunk) + bytes % 16, pair[0],
                            pair[1]);
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
      const int column = chunk * tile::chunk_values;
      if (place.exists && column < out.value_dim) {
        auto* const o = static_cast<typename operand::stored*>(out.o);
        *reinterpret_cast<uint4*>(o + out.element(place.token, place.head) + column) = values;
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
        const int column = first_column() + n * 8 + lane_ % 4 * 2;
        if (column >= out.value_dim) continue;
        out.store(row + column, values_[half / 2][n][half % 2 * 2]);
        out.store(row + column + 1, values_[half / 2][n][half % 2 * 2 + 1]);
      }
    }
  }

  std::uint32_t queries_;
  int lane_;
  int query_place_;
  online_softmax<RowTiles> softmax_;
  float values_[RowTiles][value_tiles][4] = {};
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
