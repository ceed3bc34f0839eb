// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/forward_tuning.cuh>
#include <blockattn/cuda/rounded_rows.cuh>
#include <blockattn/cuda/tile_walk.cuh>
#include <blockattn/cuda/warp_attention.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

struct forward_parameters {
  device_view q, k, v;
  storage_format q_format;  ///< queries are rounded to that of keys and values
  output_rows out;
  const plan_lists* lists;
  const std::int32_t* plan_of_head;
  float* part_values;         ///< (query_heads, parts, queries of a tile, columns)
  row_statistics* part_rows;  ///< (query_heads, parts, queries of a tile)
  int parts;                  ///< of one head
  int query_tokens, key_tokens, query_heads;
  int group;  ///< query heads for each kv head
  int items;  ///< the most of any plan
  score_form form;
};

/// What the current cta of a launch of items x query_heads ctas works on: the items with most tiles
/// first, each for all heads. One group of eight heads after the other, so that fewer keys share
/// the cache, was 3 to 9 % slower on an H100.
struct forward_work {
  int head;
  int rank;  ///< among the items of the head's plan

  __device__ __forceinline__ explicit forward_work(const forward_parameters& p) {
    head = static_cast<int>(blockIdx.x) % p.query_heads;
    rank = static_cast<int>(blockIdx.x) / p.query_heads;
  }
  __device__ __forceinline__ const plan_lists& lists(const forward_parameters& p) const {
    return p.lists[p.plan_of_head[head] * list_kinds + forward_lists];
  }
};

/// One cta: a run of key tiles of one query tile in one head. Warps own rows of queries; keys and
/// values of the next tile arrive while those of the current one are multiplied.
template <storage_format Format, class Tuning>
class forward_cta {
 public:
  static constexpr int threads = Tuning::warps * 32;
  static constexpr int rows_per_warp = Tuning::queries / Tuning::warps * Tuning::column_warps;
  using warp = warp_attention<Format,
                              Tuning::columns,
                              rows_per_warp / 16,
                              Tuning::strip / 8,
                              Tuning::column_warps>;
  using tile = typename warp::tile;
  using stored = typename warp::operand::stored;
  static constexpr int query_bytes = Tuning::queries * tile::row_bytes;
  static constexpr int key_bytes = Tuning::keys * tile::row_bytes;
  static constexpr int tile_bytes = query_bytes + 2 * Tuning::stages * key_bytes;

  /// Beside the tiles, for the same reason as walk_state.
  struct loop_state {
    walk_state walk;
    const stored* k;  ///< the head's first row
    const stored* v;
  };
  static constexpr int shared_bytes = tile_bytes + static_cast<int>(sizeof(loop_state));

  __device__ __forceinline__ forward_cta(const forward_parameters& parameters,
                                         unsigned char* shared)
      : p_(parameters),
        shared_(shared_address(shared)),
        loop_(*reinterpret_cast<loop_state*>(shared + tile_bytes)),
        warp_row_(static_cast<int>(threadIdx.x / 32) / Tuning::column_warps * rows_per_warp),
        rows_(shared_ + warp_row_ * tile::row_bytes) {}

  /// Attends to the key tiles of an item.
  __device__ __forceinline__ void attend(const plan_lists& lists, const work_item& item, int head) {
    const int first_query = item.outer_tile * Tuning::queries;
    const int queries = p_.query_tokens - first_query;
    if (p_.q_format == Format) {
      tile::template load<Tuning::queries, threads>(
          shared_, p_.q.row<stored>(first_query, head), p_.q,
          [queries](int row, int later) { return row < queries - later; });
    } else {
      load_rounded<Format, Tuning::columns, Tuning::queries, threads>(shared_, p_.q, p_.q_format,
                                                                      first_query, head, queries);
    }
    if (threadIdx.x == 0) {
      loop_.k = p_.k.row<stored>(0, head / p_.group);
      loop_.v = p_.v.row<stored>(0, head / p_.group);
    }
    tile_walk<Tuning::keys> walk(loop_.walk, lists, item);
    load_keys(0, walk);
    if (p_.form.change != query_change::none) {
      wait_for_copies<0>();
      __syncthreads();
      change_queries<Format, Tuning::queries, threads>(tile{}, shared_, p_.form.change);
    }
    for (int t = 0; t < walk.tiles(); ++t) {
      const bool has_next = t + 1 < walk.tiles();
      wait_for_copies<0>();
      __syncthreads();
      if (has_next) walk.advance();
      if (Tuning::stages > 1 && has_next) load_keys(t + 1, walk);
#pragma unroll 1
      for (int first = 0; first < Tuning::keys; first += Tuning::strip) {
        const std::uint32_t keys = keys_in_stage(t) + first * tile::row_bytes;
        rows_.attend([this] { return p_.form.transform; }, keys, keys + key_bytes,
                     [&](auto& scores) {
                       const tile_visibility visibility = walk.visibility(t);
                       if (visibility.slice_count > 0 || visibility.tokens < Tuning::keys) {
                         mask_scores(scores, walk.slices(), visibility, warp_row_, first);
                       }
                     });
      }
      if (Tuning::stages == 1 && has_next) {
        __syncthreads();
        load_keys(t + 1, walk);
      }
    }
  }

  /// Ends the rows of a whole item.
  __device__ __forceinline__ void write_rows(const work_item& item, int head) {
    rows_.write_rows(p_.out, place_of(item, head), {});
  }

  /// Leaves sums of weighted values for merge_parts_kernel.
  __device__ __forceinline__ void write_part(const work_item& item, int head) {
    const std::int64_t part = static_cast<std::int64_t>(head) * p_.parts + item.part;
    const std::int64_t row = part * Tuning::queries + warp_row_;
    rows_.write_part(p_.part_rows + row, p_.part_values + row * Tuning::columns,
                     place_of(item, head));
  }

 private:
  /// Of a row of the warp.
  __device__ __forceinline__ auto place_of(const work_item& item, int head) const {
    const int first = item.outer_tile * Tuning::queries + warp_row_;
    const int queries = p_.query_tokens - first;
    return [=](int row) { return row_place{first + row, head, row < queries}; };
  }

  /// Where tile t of the item lies: keys, then values.
  __device__ __forceinline__ std::uint32_t keys_in_stage(int t) const {
    return shared_ + query_bytes + t % Tuning::stages * 2 * key_bytes;
  }

  /// Begins to load tile t of the item; whoever used its place is past a barrier.
  __device__ __forceinline__ void load_keys(int t, const tile_walk<Tuning::keys>& walk) const {
    const read_tokens read = walk.begin_tile(t, p_.key_tokens);
    const auto is_read = [&read](int row, int later) { return read.contains(row, later); };
    const std::int64_t first = static_cast<std::int64_t>(walk.tile()) * Tuning::keys;
    const std::uint32_t to = keys_in_stage(t);
    tile::template load<Tuning::keys, threads>(to, loop_.k + first * p_.k.token_stride, p_.k,
                                               is_read);
    tile::template load<Tuning::keys, threads>(to + key_bytes, loop_.v + first * p_.v.token_stride,
                                               p_.v, is_read);
    commit_copies();
  }

  const forward_parameters& p_;
  std::uint32_t shared_;  ///< queries, then stages of keys and values
  loop_state& loop_;
  int warp_row_;  ///< this warp's first row in the query tile
  warp rows_;
};

/// Grid: items x query heads. Dynamic shared memory: forward_cta::shared_bytes.
template <storage_format Format, class Tuning>
__global__ void __launch_bounds__(Tuning::warps * 32, Tuning::ctas_per_processor)
    forward_kernel(const __grid_constant__ forward_parameters parameters) {
  extern __shared__ __align__(1024) unsigned char shared[];
  forward_cta<Format, Tuning> cta(parameters, shared);
  {
    const forward_work work(parameters);
    const plan_lists& lists = work.lists(parameters);
    if (work.rank >= lists.item_count) return;
    const work_item& item = lists.items[work.rank];
    if (item.tiles > 0) cta.attend(lists, item, work.head);
  }
  // Looked up again: kept over the loop, it would cost registers that the products need.
  const forward_work work(parameters);
  const work_item& item = work.lists(parameters).items[work.rank];
  if (item.part < 0) {
    cta.write_rows(item, work.head);
  } else {
    cta.write_part(item, work.head);
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
