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
  static constexpr int columns = Tuning::columns;
  static constexpr int side = Tuning::side;
  using warp = backward_warp<Tuning>;
  static constexpr int threads = warp::threads;
  static constexpr int tiles = Tuning::strip / 8;
  static constexpr int unrolled = tile_operands<Format, columns>::unrolled;
  using tile = typename tile_operands<Format, columns>::tile;
  using stored = typename tensor_operand<Format>::stored;
  static constexpr int query_bytes = Tuning::rows * tile::row_bytes;
  static constexpr int key_bytes = side * tile::row_bytes;
  static constexpr int walk_offset = 2 * query_bytes + 2 * Tuning::stages * key_bytes;
  static constexpr int shared_bytes = walk_offset + static_cast<int>(sizeof(walk_state));

  __device__ __forceinline__ backward_query_cta(const backward_parameters& parameters,
                                                unsigned char* shared)
      : p_(parameters),
        shared_(shared_address(shared)),
        walk_state_(*reinterpret_cast<walk_state*>(shared + walk_offset)) {}

  /// Rows `part` * Tuning::rows and following of a query tile.
  __device__ __forceinline__ void run(const plan_lists& lists, int query_tile, int part, int head) {
    const work_item& item = lists.items[query_tile];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = warp::first_row();
    const int first_row = part * Tuning::rows;
    const int first = query_tile * side + first_row;
    float d_q[warp::columns / 8][4] = {};
    if (item.tiles > 0) {
      const int queries = p_.query_tokens - first;
      const auto is_query = [queries](int row, int later) { return row < queries - later; };
      tile::template load<Tuning::rows, threads>(shared_, p_.q.row<stored>(first, head), p_.q,
                                                 is_query);
      tile::template load<Tuning::rows, threads>(shared_ + query_bytes,
                                                 p_.d_o.row<stored>(first, head), p_.d_o, is_query);
      const float2* const rows =
          p_.rows + static_cast<std::int64_t>(head) * p_.padded_queries + first + warp_row;
      const float2 statistics[2] = {rows[lane / 4], rows[lane / 4 + 8]};
      tile_walk<side> walk(walk_state_, lists, item);
      const int kv_head = head / p_.group;
      load_keys(0, walk, kv_head);
      for (int t = 0; t < walk.tiles(); ++t) {
        const bool has_next = t + 1 < walk.tiles();
        wait_for_copies<0>();
        __syncthreads();
        if (has_next) walk.advance();
        if (Tuning::stages > 1 && has_next) load_keys(t + 1, walk, kv_head);
#pragma unroll 1
        for (int strip = 0; strip < side; strip += Tuning::strip) {
          add_strip(walk, t, strip, first_row + warp_row, statistics, d_q);
        }
        if (Tuning::stages == 1 && has_next) {
          __syncthreads();
          load_keys(t + 1, walk, kv_head);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first + warp_row + 8 * half + lane / 4;
      if (query >= p_.query_tokens) continue;
#pragma unroll
      for (int n = 0; n < warp::columns / 8; ++n) {
        p_.d_q.store(query, head, warp::first_column() + n * 8 + lane % 4 * 2,
                     d_q[n][2 * half] * p_.scale, d_q[n][2 * half + 1] * p_.scale);
      }
    }
  }

 private:
  __device__ __forceinline__ std::uint32_t keys_in_stage(int t) const {
    return shared_ + 2 * query_bytes + t % Tuning::stages * 2 * key_bytes;
  }

  __device__ __forceinline__ void load_keys(int t, const tile_walk<side>& walk, int kv_head) const {
    const read_tokens read = walk.begin_tile(t, p_.key_tokens);
    const auto is_read = [&read](int row, int later) { return read.contains(row, later); };
    const std::int64_t first = static_cast<std::int64_t>(walk.tile()) * side;
    const std::uint32_t to = keys_in_stage(t);
    tile::template load<side, threads>(to, p_.k.row<stored>(first, kv_head), p_.k, is_read);
    tile::template load<side, threads>(to + key_bytes, p_.v.row<stored>(first, kv_head), p_.v,
                                       is_read);
    commit_copies();
  }

  /// Adds what the keys from `strip` on of tile t contribute.
  __device__ __forceinline__ void add_strip(const tile_walk<side>& walk,
                                            int t,
                                            int strip,
                                            int row_in_tile,
                                            const float2 (&statistics)[2],
                                            float (&d_q)[warp::columns / 8][4]) const {
    const lane_places<Format, columns> places;
    const std::uint32_t keys = keys_in_stage(t) + strip * tile::row_bytes;
    const std::uint32_t queries = shared_ + warp::first_row() * tile::row_bytes;
    float scores[tiles][4];
    multiply_rows<unrolled>(scores, queries, keys, places);
    soften(p_, scores);
    const tile_visibility visibility = walk.visibility(t);
    if (visibility.slice_count > 0 || visibility.tokens < side) {
      float(&as_tiles)[1][tiles][4] = reinterpret_cast<float(&)[1][tiles][4]>(scores);
      mask_scores(as_tiles, walk.slices(), visibility, row_in_tile, strip);
    }
    float gradients[tiles][4];
    multiply_rows<unrolled>(gradients, queries + query_bytes, keys + key_bytes, places);
    weights_and_gradients(p_, scores, gradients,
                          [&statistics](int i, int /*n*/) { return statistics[i / 2]; });
    add_product(d_q, gradients, keys + tile::column_bytes(warp::first_column()), places);
  }

  const backward_parameters& p_;
  std::uint32_t shared_;  ///< queries, d_o, then stages of keys and values
  walk_state& walk_state_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
