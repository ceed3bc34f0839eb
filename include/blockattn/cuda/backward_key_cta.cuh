// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/query_gradient.cuh>
#include <blockattn/cuda/tile_walk.cuh>
#include <blockattn/cuda/warp_product.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// d_k and d_v of the rows of one cta, a run of a key tile in one kv head: four products for each
/// query tile of each query head of the group, in order, with both gradients in registers. Scores
/// are formed transposed, a row for each key, so that weights and their gradients are left operands
/// without a detour through shared memory. QueryGradient says what becomes of d_q.
template <storage_format Format, class Tuning, class QueryGradient>
class backward_key_cta {
 public:
  static constexpr int columns = Tuning::columns;
  static constexpr int side = Tuning::side;
  using warp = backward_warp<Tuning>;
  static constexpr int threads = warp::threads;
  static constexpr int tiles = Tuning::strip / 8;
  static constexpr int unrolled = tile_operands<Format, columns>::unrolled;
  using tile = typename tile_operands<Format, columns>::tile;
  using stored = typename tensor_operand<Format>::stored;
  static constexpr int key_bytes = Tuning::rows * tile::row_bytes;
  static constexpr int query_bytes = side * tile::row_bytes;
  static constexpr int statistics_offset = 2 * key_bytes + 2 * Tuning::stages * query_bytes;
  static constexpr int statistics_bytes = side * static_cast<int>(sizeof(float2));
  static constexpr int walk_offset = statistics_offset + Tuning::stages * statistics_bytes;
  /// Beside the tiles, because the products take every register.
  struct loop_state {
    walk_state walk;
    int key_tile, head, heads_end;
    int keys;  ///< from the cta's first row to the end of the axis
  };
  static constexpr int shared_bytes = walk_offset + static_cast<int>(sizeof(loop_state));

  __device__ __forceinline__ backward_key_cta(const backward_parameters& parameters,
                                              unsigned char* shared)
      : p_(parameters),
        bytes_(shared),
        shared_(shared_address(shared)),
        loop_(*reinterpret_cast<loop_state*>(shared + walk_offset)) {}

  /// Sums over all query tiles that see the key tile, for its rows `part` * Tuning::rows and
  /// following.
  __device__ __forceinline__ void add(int key_tile, int part, int kv_head) {
    const int first = key_tile * side + part * Tuning::rows;
    const std::uint64_t seen = seen_keys(first, kv_head);
    const auto is_key = [seen](int row, int later) { return (seen >> row >> later & 1U) != 0; };
    tile::template load<Tuning::rows, threads>(shared_, p_.k.row<stored>(first, kv_head), p_.k,
                                               is_key);
    tile::template load<Tuning::rows, threads>(shared_ + key_bytes,
                                               p_.v.row<stored>(first, kv_head), p_.v, is_key);
    if (threadIdx.x == 0) {
      loop_.key_tile = key_tile;
      loop_.keys = p_.key_tokens - first;
      loop_.head = kv_head * p_.group;
      loop_.heads_end = (kv_head + 1) * p_.group;
    }
    for (;;) {
      __syncthreads();
      if (loop_.head == loop_.heads_end) break;
      const plan_lists& lists = p_.lists[p_.plan_of_head[loop_.head] * list_kinds + key_lists];
      const work_item& item = lists.items[loop_.key_tile];
      if (item.tiles > 0) add_head(lists, item, part);
      __syncthreads();  // all have read the head's number and its tiles
      if (threadIdx.x == 0) ++loop_.head;
    }
    wait_for_copies<0>();
  }

  __device__ __forceinline__ void write(int key_tile, int part, int kv_head) const {
    const int first = key_tile * side + part * Tuning::rows + warp::first_row();
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = first + 8 * half + lane / 4;
      if (key >= p_.key_tokens) continue;
#pragma unroll
      for (int n = 0; n < warp::columns / 8; ++n) {
        const int column = warp::first_column() + n * 8 + lane % 4 * 2;
        p_.d_k.store(key, kv_head, column, d_k_[n][2 * half] * p_.scale,
                     d_k_[n][2 * half + 1] * p_.scale);
        p_.d_v.store(key, kv_head, column, d_v_[n][2 * half], d_v_[n][2 * half + 1]);
      }
    }
  }

 private:
  /// A bit for each key, from `first` on, that a query of any head sees. Others, which may hold
  /// anything, are loaded as 0: they are multiplied by 0 for d_q.
  __device__ __forceinline__ std::uint64_t seen_keys(int first, int kv_head) const {
    std::uint64_t seen = 0;
    for (int head = kv_head * p_.group; head < (kv_head + 1) * p_.group; ++head) {
      seen |= p_.lists[p_.plan_of_head[head] * list_kinds + key_lists].seen[first / 64];
    }
    return seen >> (first % 64);
  }

  __device__ __forceinline__ std::uint32_t queries_in_stage(int t) const {
    return shared_ + 2 * key_bytes + t % Tuning::stages * 2 * query_bytes;
  }
  __device__ __forceinline__ const float2* statistics_in_stage(int t) const {
    return reinterpret_cast<const float2*>(bytes_ + statistics_offset +
                                           t % Tuning::stages * statistics_bytes);
  }

  __device__ __forceinline__ void add_head(const plan_lists& lists,
                                           const work_item& item,
                                           int part) {
    tile_walk<side> walk(loop_.walk, lists, item);
    load_queries(0, walk);
    for (int t = 0; t < walk.tiles(); ++t) {
      const bool has_next = t + 1 < walk.tiles();
      wait_for_copies<0>();
      __syncthreads();
      if (has_next) walk.advance();
      if (Tuning::stages > 1 && has_next) load_queries(t + 1, walk);
#pragma unroll 1
      for (int strip = 0; strip < side; strip += Tuning::strip) add_strip(walk, t, strip, part);
      if (Tuning::stages == 1 && has_next) {
        __syncthreads();
        load_queries(t + 1, walk);
      }
    }
  }

  __device__ __forceinline__ void load_queries(int t, const tile_walk<side>& walk) const {
    const int head = loop_.head;
    const read_tokens read = walk.begin_tile(t, p_.query_tokens);
    const auto is_read = [&read](int row, int later) { return read.contains(row, later); };
    const std::int64_t first = static_cast<std::int64_t>(walk.tile()) * side;
    const std::uint32_t to = queries_in_stage(t);
    const int thread = thread_in_few_registers();
    tile::template load<side, threads>(to, p_.q.row<stored>(first, head), p_.q, is_read, thread);
    tile::template load<side, threads>(to + query_bytes, p_.d_o.row<stored>(first, head), p_.d_o,
                                       is_read, thread);
    if (thread < side / 2) {  // two rows each
      const float2* const from =
          p_.rows + static_cast<std::int64_t>(head) * p_.padded_queries + first + thread * 2;
      copy_async(shared_address(statistics_in_stage(t) + thread * 2), from, 16);
    }
    commit_copies();
  }

  /// Adds what the queries from `strip` on of tile t contribute.
  __device__ __forceinline__ void add_strip(const tile_walk<side>& walk,
                                            int t,
                                            int strip,
                                            int part) {
    const lane_places<Format, columns> places(thread_in_few_registers());
    const std::uint32_t keys = shared_ + warp::first_row() * tile::row_bytes;
    const std::uint32_t queries = queries_in_stage(t) + strip * tile::row_bytes;
    float scores[tiles][4];
    multiply_rows<unrolled>(scores, keys, queries, places);
    soften(p_, scores);
    const tile_visibility visibility = walk.visibility(t);
    if (visibility.slice_count > 0 || visibility.tokens < side || loop_.keys < Tuning::rows) {
      float(&as_tiles)[1][tiles][4] = reinterpret_cast<float(&)[1][tiles][4]>(scores);
      mask_scores(as_tiles, walk.slices(), visibility, part * Tuning::rows + warp::first_row(),
                  strip);
      hide_rows(scores, loop_.keys - warp::first_row());
    }
    float gradients[tiles][4];
    multiply_rows<unrolled>(gradients, keys + key_bytes, queries + query_bytes, places);
    const float2* const statistics =
        statistics_in_stage(t) + strip + static_cast<int>(threadIdx.x) % 4 * 2;
    weights_and_gradients(p_, scores, gradients,
                          [statistics](int i, int n) { return statistics[8 * n + i % 2]; });
    const std::uint32_t columns_of_warp = queries + tile::column_bytes(warp::first_column());
    add_product(d_v_, scores, columns_of_warp + query_bytes, places);
    QueryGradient::keep(queries + query_bytes, gradients);
    add_product(d_k_, gradients, columns_of_warp, places);
    // Not kept from when the tile was loaded, which was before the walk went on.
    const int query_tile = (p_.query_tokens - walk.visibility(t).tokens) / side;
    QueryGradient::add(p_, queries + query_bytes, shared_, query_tile, loop_.head);
  }

  const backward_parameters& p_;
  unsigned char* bytes_;
  std::uint32_t shared_;  ///< keys, values, then stages of queries and d_o
  loop_state& loop_;
  float d_k_[warp::columns / 8][4] = {};
  float d_v_[warp::columns / 8][4] = {};
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
