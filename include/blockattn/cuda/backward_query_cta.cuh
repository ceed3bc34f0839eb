// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/backward_parameters.cuh>
#include <blockattn/cuda/tile_walk.cuh>
#include <blockattn/cuda/warp_product.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// d_q of the rows of one cta, a run of a query tile in one head: three products for each key tile,
/// d_q in registers.
template <storage_format Format, class Tuning>
class backward_query_cta {
 public:
  using shape = typename Tuning::query;
  static constexpr int columns = Tuning::columns;
  static constexpr int threads = shape::threads;
  static constexpr int row_tiles = shape::row_tiles;
  static constexpr int tiles = shape::strip / 8;
  static constexpr int inner = shape::side / shape::inner_warps;
  // With all there are 4 spill registers where a warp has 32 rows of 128 columns.
  static constexpr int unrolled = std::min(4, tile_operands<Format, columns>::unrolled);
  using warp = backward_warp<shape, columns>;
  using tile = typename tile_operands<Format, columns>::tile;
  using stored = typename tensor_operand<Format>::stored;
  static constexpr int query_bytes = shape::rows * tile::row_bytes;
  static constexpr int key_bytes = shape::side * tile::row_bytes;
  static constexpr int walk_offset = 2 * query_bytes + 2 * shape::stages * key_bytes;
  static constexpr int shared_bytes = walk_offset + static_cast<int>(sizeof(walk_state));

  __device__ __forceinline__ backward_query_cta(const backward_parameters& parameters,
                                                unsigned char* shared)
      : p_(parameters),
        bytes_(shared),
        shared_(shared_address(shared)),
        walk_state_(*reinterpret_cast<walk_state*>(shared + walk_offset)) {}

  /// Rows `part` * shape::rows and following of a query tile.
  __device__ __forceinline__ void run(const plan_lists& lists, int query_tile, int part, int head) {
    const work_item& item = lists.items[query_tile];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int first_row = part * shape::rows;
    const int first = query_tile * shape::side + first_row;
    if (item.tiles > 0) {
      const int queries = p_.query_tokens - first;
      const auto is_query = [queries](int row, int later) { return row < queries - later; };
      tile::template load<shape::rows, threads>(shared_, p_.q.row<stored>(first, head), p_.q,
                                                is_query);
      tile::template load<shape::rows, threads>(shared_ + query_bytes,
                                                p_.d_o.row<stored>(first, head), p_.d_o, is_query);
      const float2* const rows = p_.rows + static_cast<std::int64_t>(head) * p_.padded_queries +
                                 first + warp::first_row() + lane / 4;
#pragma unroll
      for (int half = 0; half < 2 * row_tiles; ++half) statistics_[half] = rows[8 * half];
      tile_walk<shape::side> walk(walk_state_, lists, item);
      const int kv_head = head / p_.group;
      load_keys(0, walk, kv_head);
      for (int t = 0; t < walk.tiles(); ++t) {
        const bool has_next = t + 1 < walk.tiles();
        wait_for_copies<0>();
        __syncthreads();
        if (has_next) walk.advance();
        if (shape::stages > 1 && has_next) load_keys(t + 1, walk, kv_head);
#pragma unroll 1
        for (int strip = 0; strip < inner; strip += shape::strip) {
          add_strip(walk, t, warp::inner() * inner + strip, first_row);
        }
        if (shape::stages == 1 && has_next) {
          __syncthreads();
          load_keys(t + 1, walk, kv_head);
        }
      }
    }
    if constexpr (shape::inner_warps > 1) join_inner_warps();
    if (warp::inner() > 0) return;
#pragma unroll
    for (int half = 0; half < 2 * row_tiles; ++half) {
      const int query = first + warp::first_row() + 8 * half + lane / 4;
      if (query >= p_.query_tokens) continue;
#pragma unroll
      for (int n = 0; n < warp::columns / 8; ++n) {
        const float* const pair = &d_q_[half / 2][n][half % 2 * 2];
        p_.d_q.store(query, head, warp::first_column() + n * 8 + lane % 4 * 2, pair[0] * p_.scale,
                     pair[1] * p_.scale);
      }
    }
  }

 private:
  __device__ __forceinline__ std::uint32_t keys_in_stage(int t) const {
    return shared_ + 2 * query_bytes + t % shape::stages * 2 * key_bytes;
  }

  __device__ __forceinline__ void load_keys(int t,
                                            const tile_walk<shape::side>& walk,
                                            int kv_head) const {
    const read_tokens read = walk.begin_tile(t, p_.key_tokens);
    const auto is_read = [&read](int row, int later) { return read.contains(row, later); };
    const std::int64_t first = static_cast<std::int64_t>(walk.tile()) * shape::side;
    const std::uint32_t to = keys_in_stage(t);
    tile::template load<shape::side, threads>(to, p_.k.row<stored>(first, kv_head), p_.k, is_read);
    tile::template load<shape::side, threads>(to + key_bytes, p_.v.row<stored>(first, kv_head),
                                              p_.v, is_read);
    commit_copies();
  }

  /// Adds what the keys from `strip` on of tile t contribute.
  __device__ __forceinline__ void add_strip(const tile_walk<shape::side>& walk,
                                            int t,
                                            int strip,
                                            int first_row) {
    const lane_places<Format, columns> places;
    const std::uint32_t keys = keys_in_stage(t) + strip * tile::row_bytes;
    const std::uint32_t queries = shared_ + warp::first_row() * tile::row_bytes;
    float scores[row_tiles][tiles][4];
    multiply_rows<unrolled>(scores, lefts_at(queries, places), keys, places);
    soften(p_, scores);
    const tile_visibility visibility = walk.visibility(t);
    if (visibility.slice_count > 0 || visibility.tokens < shape::side) {
      mask_scores(scores, walk.slices(), visibility, first_row + warp::first_row(), strip);
    }
    float gradients[row_tiles][tiles][4];
    multiply_rows<unrolled>(gradients, lefts_at(queries + query_bytes, places), keys + key_bytes,
                            places);
    weights_and_gradients(p_, scores, gradients,
                          [this](int r, int /*n*/, int i) { return statistics_[2 * r + i / 2]; });
    add_product(d_q_, gradients, keys + tile::column_bytes(warp::first_column()), places);
  }

  /// Gives the first inner warp what the others have summed up over their keys.
  __device__ __forceinline__ void join_inner_warps() {
    constexpr int values = row_tiles * (warp::columns / 8) * 4;
    using warp_sums = float[values][32];
    static_assert((shape::inner_warps - 1) * shape::row_warps * shape::column_warps *
                      sizeof(warp_sums) <=
                  walk_offset);
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int group =
        warp::number() / (shape::column_warps * shape::inner_warps) * shape::column_warps +
        warp::number() % shape::column_warps;
    auto* const sums = reinterpret_cast<warp_sums*>(bytes_) + group * (shape::inner_warps - 1) - 1;
    float* const own = &d_q_[0][0][0];
    if (warp::inner() > 0) {
#pragma unroll
      for (int i = 0; i < values; ++i) sums[warp::inner()][i][lane] = own[i];
    }
    __syncthreads();
    if (warp::inner() > 0) return;
#pragma unroll
    for (int other = 1; other < shape::inner_warps; ++other) {
#pragma unroll
      for (int i = 0; i < values; ++i) own[i] += sums[other][i][lane];
    }
  }

  const backward_parameters& p_;
  unsigned char* bytes_;
  std::uint32_t shared_;  ///< queries, d_o, then stages of keys and values
  walk_state& walk_state_;
  float2 statistics_[2 * row_tiles];
  float d_q_[row_tiles][warp::columns / 8][4] = {};
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
