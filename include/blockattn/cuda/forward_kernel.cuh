// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/forward_tuning.cuh>
#include <blockattn/cuda/online_softmax.cuh>
#include <blockattn/cuda/output_rows.cuh>
#include <blockattn/cuda/shared_tile.cuh>
#include <blockattn/cuda/tile_walk.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What becomes of queries before they are multiplied: the kernel wants a positive scale.
enum class query_change { none, negate, zero };

struct forward_parameters {
  device_view q, k, v;
  output_rows out;
  const plan_lists* lists;
  const std::int32_t* plan_of_head;
  float* part_values;         ///< (query_heads, parts, queries of a tile, columns)
  row_statistics* part_rows;  ///< (query_heads, parts, queries of a tile)
  int parts;                  ///< of one head
  int query_tokens, key_tokens, query_heads;
  int group;  ///< query heads for each kv head
  int items;  ///< the most of any plan
  query_change change;
  score_transform transform;
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

/// One cta: a run of key tiles of one query tile in one head (FlashAttention-2, arXiv 2307.08691,
/// algorithm 1). Warps own rows of queries; keys and values of the next tile arrive while those of
/// the current one are multiplied.
template <storage_format Format, class Tuning>
class forward_cta {
 public:
  static constexpr int columns = Tuning::columns;
  static constexpr int threads = Tuning::warps * 32;
  static constexpr int rows_per_warp = Tuning::queries / Tuning::warps;
  static constexpr int row_tiles = rows_per_warp / 16;
  static constexpr int key_tiles = Tuning::keys / 8;
  static constexpr int value_tiles = columns / 8;
  using tile = shared_tile<columns>;
  static constexpr int query_bytes = Tuning::queries * tile::row_bytes;
  static constexpr int key_bytes = Tuning::keys * tile::row_bytes;
  static constexpr int tile_bytes = query_bytes + 2 * Tuning::stages * key_bytes;

  /// Beside the tiles, for the same reason as walk_state.
  struct loop_state {
    walk_state walk;
    const std::uint16_t* k;  ///< the head's first row
    const std::uint16_t* v;
  };
  static constexpr int shared_bytes = tile_bytes + static_cast<int>(sizeof(loop_state));

  __device__ __forceinline__ forward_cta(const forward_parameters& parameters,
                                         unsigned char* shared)
      : p_(parameters),
        shared_(shared_address(shared)),
        loop_(*reinterpret_cast<loop_state*>(shared + tile_bytes)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_row_(static_cast<int>(threadIdx.x / 32 * rows_per_warp)),
        lane_offset_(tile::offset(lane_ % 16, lane_ / 16)) {}

  /// Attends to the key tiles of an item.
  __device__ __forceinline__ void attend(const plan_lists& lists, const work_item& item, int head) {
    const int first_query = item.outer_tile * Tuning::queries;
    const int queries = p_.query_tokens - first_query;
    tile::template load<Tuning::queries, threads>(
        shared_, p_.q.row(first_query, head), p_.q,
        [queries](int row, int later) { return row < queries - later; });
    if (threadIdx.x == 0) {
      loop_.k = p_.k.row(0, head / p_.group);
      loop_.v = p_.v.row(0, head / p_.group);
    }
    tile_walk<Tuning::keys> walk(loop_.walk, lists, item);
    load_keys(0, walk);
    if (p_.change != query_change::none) change_queries();
    for (int t = 0; t < walk.tiles(); ++t) {
      const bool has_next = t + 1 < walk.tiles();
      wait_for_copies<0>();
      __syncthreads();
      if (has_next) walk.advance();
      if (Tuning::stages > 1 && has_next) load_keys(t + 1, walk);
      float scores[row_tiles][key_tiles][4];
      multiply_keys(keys_in_stage(t), scores);
      softmax_.prepare(p_.transform, scores);
      const tile_visibility visibility = walk.visibility(t);
      if (visibility.slice_count > 0 || visibility.tokens < Tuning::keys) {
        mask_scores(scores, walk.slices(), visibility, warp_row_);
      }
      softmax_.take_maxima(p_.transform, scores, values_);
      multiply_values(keys_in_stage(t) + key_bytes, scores);
      if (Tuning::stages == 1 && has_next) {
        __syncthreads();
        load_keys(t + 1, walk);
      }
    }
  }

  /// Ends the rows of a whole item.
  __device__ __forceinline__ void write_rows(const work_item& item, int head) {
    const int first_query = item.outer_tile * Tuning::queries;
#pragma unroll
    for (int half = 0; half < 2 * row_tiles; ++half) {
      const int query = first_query + row_of(half);
      const row_statistics statistics = softmax_.row(half);
      float factor = 0;
      if (query < p_.query_tokens) {
        factor = finish_row(p_.out, statistics, query, head, lane_ % 4 == 0);
      }
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        float* const pair = &values_[half / 2][n][half % 2 * 2];
        pair[0] *= factor;
        pair[1] *= factor;
      }
    }
    if (p_.out.vectors != 0 && p_.out.format == Format) {
      write_vectors(first_query, head);
    } else {
      write_elements(first_query, head);
    }
  }

  /// Leaves sums of weighted values for merge_parts_kernel.
  __device__ __forceinline__ void write_part(const work_item& item, int head) {
    const std::int64_t part = static_cast<std::int64_t>(head) * p_.parts + item.part;
#pragma unroll
    for (int half = 0; half < 2 * row_tiles; ++half) {
      const std::int64_t row = part * Tuning::queries + row_of(half);
      const row_statistics statistics = softmax_.row(half);
      if (lane_ % 4 == 0) p_.part_rows[row] = statistics;
      float* const out = p_.part_values + row * columns + lane_ % 4 * 2;
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        const float* const pair = &values_[half / 2][n][half % 2 * 2];
        *reinterpret_cast<float2*>(out + n * 8) = float2{pair[0], pair[1]};
      }
    }
  }

 private:
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

  /// Negates the queries, or makes them 0.
  __device__ __forceinline__ void change_queries() const {
    wait_for_copies<0>();
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x) * 4; at < query_bytes; at += threads * 4) {
      std::uint32_t pair;
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(shared_ + at) : "memory");
      pair = p_.change == query_change::zero ? 0U : pair ^ tensor_operand<Format>::two_signs;
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared_ + at), "r"(pair) : "memory");
    }
  }

  /// scores = queries of this warp x keys^T.
  __device__ __forceinline__ void multiply_keys(std::uint32_t keys,
                                                float (&scores)[row_tiles][key_tiles][4]) const {
#pragma unroll
    for (int r = 0; r < row_tiles; ++r) {
#pragma unroll
      for (int n = 0; n < key_tiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[r][n][i] = 0;
      }
    }
    const std::uint32_t query_chunk = shared_ + warp_row_ * tile::row_bytes + lane_offset_;
    // In this order a product's two registers of keys are neighbours, as the instruction wants.
    const std::uint32_t key_chunk = keys + tile::offset(lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
#pragma unroll
    for (int step = 0; step < columns / 16; ++step) {
      std::uint32_t query[row_tiles][4];
#pragma unroll
      for (int r = 0; r < row_tiles; ++r) {
        load_matrices(query[r], tile::later_chunk(query_chunk, 16 * r, 2 * step));
      }
#pragma unroll
      for (int n = 0; n < key_tiles; n += 2) {
        std::uint32_t key[4];
        load_matrices(key, tile::later_chunk(key_chunk, 8 * n, 2 * step));
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          tensor_operand<Format>::multiply_add(scores[r][n], query[r], key[0], key[1]);
          tensor_operand<Format>::multiply_add(scores[r][n + 1], query[r], key[2], key[3]);
        }
      }
    }
  }

  /// values_ += weights x values. The weights of the next 16 keys are computed beside the products
  /// of the current ones.
  __device__ __forceinline__ void multiply_values(std::uint32_t values,
                                                  float (&scores)[row_tiles][key_tiles][4]) {
    const std::uint32_t value_chunk = values + lane_offset_;
#pragma unroll
    for (int step = 0; step < key_tiles / 2; ++step) {
      std::uint32_t weights[row_tiles][4];
#pragma unroll
      for (int r = 0; r < row_tiles; ++r) {
        softmax_.template weights<Format>(p_.transform, r, scores[r][2 * step],
                                          scores[r][2 * step + 1], weights[r]);
      }
#pragma unroll
      for (int n = 0; n < value_tiles; n += 2) {
        std::uint32_t value[4];
        load_transposed(value, tile::later_chunk(value_chunk, 16 * step, n));
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          tensor_operand<Format>::multiply_add(values_[r][n], weights[r], value[0], value[1]);
          tensor_operand<Format>::multiply_add(values_[r][n + 1], weights[r], value[2], value[3]);
        }
      }
    }
  }

  /// Row `half` (of 2 * row_tiles) that this lane holds, within the query tile.
  __device__ __forceinline__ int row_of(int half) const { return warp_row_ + 8 * half + lane_ / 4; }

  /// Through the warp's own rows of the query tile, which nobody reads any more, so that whole rows
  /// are written at once.
  __device__ __forceinline__ void write_vectors(int first_query, int head) const {
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2 * row_tiles; ++half) {
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        const float* const pair = &values_[half / 2][n][half % 2 * 2];
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared_ + tile::offset(row_of(half), n) +
                                                     lane_ % 4 * 4),
                     "r"(tensor_operand<Format>::pack(pair[0], pair[1]))
                     : "memory");
      }
    }
    __syncwarp();
#pragma unroll 4
    for (int at = lane_; at < rows_per_warp * tile::chunks; at += 32) {
      const int row = warp_row_ + at / tile::chunks;
      const int chunk = at % tile::chunks;
      uint4 values;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(values.x), "=r"(values.y), "=r"(values.z), "=r"(values.w)
                   : "r"(shared_ + tile::offset(row, chunk))
                   : "memory");
      if (first_query + row < p_.query_tokens && chunk * 8 < p_.out.value_dim) {
        auto* const o = static_cast<std::uint16_t*>(p_.out.o);
        *reinterpret_cast<uint4*>(o + p_.out.element(first_query + row, head) + chunk * 8) = values;
      }
    }
  }

  __device__ __forceinline__ void write_elements(int first_query, int head) const {
#pragma unroll
    for (int half = 0; half < 2 * row_tiles; ++half) {
      const int query = first_query + row_of(half);
      if (query >= p_.query_tokens) continue;
      const std::int64_t row = p_.out.element(query, head);
#pragma unroll
      for (int n = 0; n < value_tiles; ++n) {
        const int column = n * 8 + lane_ % 4 * 2;
        if (column >= p_.out.value_dim) continue;
        p_.out.store(row + column, values_[half / 2][n][half % 2 * 2]);
        p_.out.store(row + column + 1, values_[half / 2][n][half % 2 * 2 + 1]);
      }
    }
  }

  const forward_parameters& p_;
  std::uint32_t shared_;  ///< queries, then stages of keys and values
  loop_state& loop_;
  int lane_;
  int warp_row_;     ///< this warp's first row in the query tile
  int lane_offset_;  ///< of the chunk that this lane names for ldmatrix, of queries and values
  online_softmax<row_tiles> softmax_;
  float values_[row_tiles][value_tiles][4] = {};  ///< sums of weighted values
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
