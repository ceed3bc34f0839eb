// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/attend_tuning.cuh>
#include <blockattn/cuda/attend_walk.cuh>
#include <blockattn/cuda/runtime.cuh>
#include <blockattn/cuda/tile_mask.cuh>
#include <blockattn/cuda/warp_attention.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// One cta: a run of key tiles of one row tile in one kv head.
template <storage_format Format, class Tuning>
class attend_cta {
 public:
  static constexpr int threads = Tuning::threads;
  static constexpr int rows_per_warp = Tuning::rows / Tuning::row_warps;
  static constexpr int keys_per_warp = Tuning::keys / Tuning::key_warps;
  using warp = warp_attention<Format, Tuning::columns, rows_per_warp / 16, keys_per_warp / 8>;
  using tile = shared_tile<Tuning::columns>;
  using walk_type = attend_walk<Tuning::keys, Tuning::stages>;
  static constexpr int query_bytes = Tuning::rows * tile::row_bytes;
  static constexpr int key_bytes = Tuning::keys * tile::row_bytes;
  static constexpr int tile_bytes = query_bytes + 2 * Tuning::stages * key_bytes;
  static constexpr int shared_bytes =
      tile_bytes + static_cast<int>(sizeof(typename walk_type::state));
  static_assert(shared_bytes <= 99 * 1024, "more than compute capability 8.6 has");
  static_assert(threads >= Tuning::keys, "a thread finds one row of a tile");

  __device__ __forceinline__ attend_cta(const attend_parameters& parameters, unsigned char* shared)
      : p_(parameters),
        bytes_(shared),
        shared_(shared_address(shared)),
        warp_row_(Tuning::row_warps == 1 ? 0 : warp_number() * rows_per_warp),
        warp_key_(Tuning::key_warps == 1 ? 0 : warp_number() * keys_per_warp),
        rows_(shared_ + warp_row_ * tile::row_bytes) {}

  /// Attends to the key tiles of an item.
  __device__ __forceinline__ void attend(const attend_item& item, int kv_head) {
    walk_type walk(state(), p_, item, kv_head);
    __syncthreads();
    walk.prepare(0);
    wait_for_launcher();
    load_queries(walk);
    for (int t = 0; t < Tuning::tiles_ahead; ++t) {
      __syncthreads();
      load_keys(walk, t);
      walk.prepare(t + 1);
    }
    for (int t = 0; t < walk.tiles(); ++t) {
      if (Tuning::tiles_ahead == Tuning::stages && t == 0) {
        wait_for_copies<Tuning::stages - 1>();
      } else {
        wait_for_copies<Tuning::stages - 2>();
      }
      __syncthreads();
      if (walk.tile(t).enters) {
        if (t > 0) enter_group(walk, t);
        form_queries(walk.group());
      }
      const int next = t + Tuning::stages - 1;
      if (next >= Tuning::tiles_ahead) {
        load_keys(walk, next);
        walk.prepare(next + 1);
      }
      const std::uint32_t stage = keys_in_stage(t) + warp_key_ * tile::row_bytes;
      rows_.attend([&] { return walk.group().form.transform; }, stage, stage + key_bytes,
                   [&](auto& scores) { mask(scores, walk, walk.tile(t).keys_left); });
    }
    if (walk.tiles() == 0) {  // the rows of queries serve as room for the output
      wait_for_copies<0>();
      __syncthreads();
    }
    if (Tuning::key_warps > 1) join_key_warps();
  }

  /// Writes the rows of the item: the result where it is the only one, else a part.
  __device__ __forceinline__ void write() {
    if (warp_key_ > 0) return;
    // Kept over the loop, they would cost registers that the products need.
    const attend_item& item = state().item;
    const int kv_head = state().kv_head;
    const int first = item.first_row + warp_row_;
    const auto place_of = [&, first](int row) {
      const int at = first + row;
      return row_place{item.first_query + at / p_.group_heads,
                       kv_head * p_.group_heads + at % p_.group_heads, at < item.rows};
    };
    if (item.part_row < 0) {
      rows_.write_rows(p_.out, place_of, item.weight);
    } else {
      const std::int64_t row = kv_head * p_.part_row_count + item.part_row + warp_row_;
      rows_.write_part(p_.part_rows + row, p_.part_values + row * Tuning::columns, place_of);
    }
  }

 private:
  static_assert(Tuning::row_warps == 1 || Tuning::key_warps == 1);

  __device__ __forceinline__ typename walk_type::state& state() const {
    return *reinterpret_cast<typename walk_type::state*>(bytes_ + tile_bytes);
  }
  static __device__ __forceinline__ int warp_number() { return static_cast<int>(threadIdx.x) / 32; }

  /// Where tile t of the item lies: keys, then values.
  __device__ __forceinline__ std::uint32_t keys_in_stage(int t) const {
    return shared_ + query_bytes + t % Tuning::stages * 2 * key_bytes;
  }

  /// Hides keys that lie behind the group's last one, of which `keys_left` are left from the tile's
  /// first on, or that a row's query does not see yet.
  template <class Scores>
  __device__ __forceinline__ void mask(Scores& scores, const walk_type& walk, int keys_left) const {
    // Keys from the warp's first one on: of the group, and those that query 0 sees.
    const int left = keys_left - warp_key_;
    const int seen = left + walk.group().last_key + 1 - walk.group().keys;
    if (min(left, seen + walk.first_query()) >= keys_per_warp) return;
    hide_columns(scores, [&](int half) {
      const int row = walk.item().first_row + warp_row_ + rows_.row_of(half);
      return min(left, seen + row / p_.group_heads);
    });
  }

  /// Begins to load tile t, a group of copies, empty behind the last tile. Whoever used its place
  /// is past a barrier.
  __device__ __forceinline__ void load_keys(const walk_type& walk, int t) const {
    if (t < walk.tiles()) {
      const auto& places = state();
      const std::uint32_t to = keys_in_stage(t);
      load_tile(to, p_.head_dim, places.k_run[t % 2], places.k_rows[t % 2], places.rows[t % 2]);
      load_tile(to + key_bytes, p_.value_dim, places.v_run[t % 2], places.v_rows[t % 2],
                places.rows[t % 2]);
    }
    commit_copies();
  }

  /// Begins to load the first `rows` rows of a tile, and zeros behind them.
  __device__ __forceinline__ void load_tile(std::uint32_t to,
                                            int columns,
                                            const key_run& run,
                                            const std::uint16_t* const (&places)[Tuning::keys],
                                            int rows) const {
    if (run.first != nullptr) {
      const device_view view{run.first, run.stride, 0, columns, p_.vectors};
      tile::template load<Tuning::keys, threads>(
          to, run.first, view, [rows](int row, int later) { return row < rows - later; });
      return;
    }
    tile::template load_rows<Tuning::keys, threads>(
        to, columns, p_.vectors, [&places, rows](int row, int later) {
          const bool exists = row < rows - later;
          return source_row{exists ? places[row + later] : nullptr, exists};
        });
  }

  /// Begins to load the rows' queries; whoever used them is past a barrier.
  __device__ __forceinline__ void load_queries(const walk_type& walk) const {
    const attend_item& item = walk.item();
    tile::template load_rows<Tuning::rows, threads>(
        shared_, p_.head_dim, p_.vectors, [&](int row, int later) {
          const int at = item.first_row + row + later;
          const int query = at / p_.group_heads;
          const int head = walk.kv_head() * p_.group_heads + at - query * p_.group_heads;
          return source_row{
              p_.q + (item.first_query + query) * p_.q_token_stride + head * p_.q_head_stride,
              at < item.rows};
        });
  }

  /// Loads the queries again for the group of tile t.
  __device__ __forceinline__ void enter_group(walk_type& walk, int t) const {
    walk.enter(t);
    load_queries(walk);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
  }

  /// Makes of loaded queries what meets the keys of a group.
  __device__ __forceinline__ void form_queries(const key_group& group) const {
    if (group.query_shift != 0) {
      turn_queries(group.query_shift);
      __syncthreads();
    }
    if (group.form.change != query_change::none) {
      change_queries<Format, Tuning::rows, threads>(tile{}, shared_, group.form.change);
      __syncthreads();
    }
  }

  /// Turns all rows in place; a thread takes one pair of values in several rows.
  __device__ __forceinline__ void turn_queries(double shift) const {
    const int pairs = p_.turn.pairs;
    const int row_groups = max(1, threads / max(1, pairs));
    for (int unit = static_cast<int>(threadIdx.x); unit < pairs * row_groups; unit += threads) {
      const int pair = unit % pairs;
      const float2 angle = p_.turn.angle(shift, pair);
      const int column = p_.turn.step * pair;
#pragma unroll 4
      for (int row = unit / pairs; row < Tuning::rows; row += row_groups) {
        std::uint16_t& x = *tile::element(bytes_, row, column);
        std::uint16_t& y = *tile::element(bytes_, row, column + p_.turn.apart);
        const float a = tensor_operand<Format>::widen(x);
        const float b = tensor_operand<Format>::widen(y);
        const std::uint32_t turned =
            tensor_operand<Format>::pack(a * angle.x - b * angle.y, b * angle.x + a * angle.y);
        x = static_cast<std::uint16_t>(turned);
        y = static_cast<std::uint16_t>(turned >> 16);
      }
    }
  }

  /// Gives the first key warp what the others have summed up over their keys of each tile.
  __device__ __forceinline__ void join_key_warps() {
    constexpr int values = warp::value_tiles * 4 * rows_per_warp / 16;
    struct warp_part {
      float max_log2[warp::halves][32];
      float sum[warp::halves][32];
      float values[values][32];
    };
    static_assert((Tuning::key_warps - 1) * sizeof(warp_part) <=
                  2 * Tuning::stages * std::size_t{key_bytes});
    wait_for_copies<0>();
    __syncthreads();
    auto* const parts = reinterpret_cast<warp_part*>(bytes_ + query_bytes);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    auto& softmax = rows_.softmax();
    float* const own = &rows_.values()[0][0][0];
    if (warp_number() > 0) {
      warp_part& part = parts[warp_number() - 1];
#pragma unroll
      for (int half = 0; half < warp::halves; ++half) {
        part.max_log2[half][lane] = softmax.max_log2[half];
        part.sum[half][lane] = softmax.sum[half];
      }
#pragma unroll
      for (int i = 0; i < values; ++i) part.values[i][lane] = own[i];
    }
    __syncthreads();
    if (warp_number() > 0) return;
#pragma unroll 1
    for (int other = 0; other < Tuning::key_warps - 1; ++other) {
      const warp_part& part = parts[other];
#pragma unroll
      for (int half = 0; half < warp::halves; ++half) {
        const float theirs = part.max_log2[half][lane];
        const float largest = fmaxf(softmax.max_log2[half], theirs);
        const float keeps = exp2_approximate(softmax.max_log2[half] - largest);
        const float takes = exp2_approximate(theirs - largest);
        softmax.max_log2[half] = largest;
        softmax.sum[half] = keeps * softmax.sum[half] + takes * part.sum[half][lane];
#pragma unroll
        for (int i = 0; i < values; ++i) {
          const bool of_half = i / (warp::value_tiles * 4) == half / 2 && i % 4 / 2 == half % 2;
          if (of_half) own[i] = keeps * own[i] + takes * part.values[i][lane];
        }
      }
    }
  }

  const attend_parameters& p_;
  unsigned char* bytes_;  ///< queries, then stages of keys and values, then the walk's state
  std::uint32_t shared_;
  int warp_row_;  ///< this warp's first row in the row tile
  int warp_key_;  ///< and its first key in every key tile
  warp rows_;
};

/// Grid: items x kv heads. Dynamic shared memory: attend_cta::shared_bytes.
template <storage_format Format, class Tuning>
__global__ void __launch_bounds__(Tuning::threads, Tuning::ctas_per_processor)
    attend_kernel(const __grid_constant__ attend_parameters p) {
  extern __shared__ __align__(1024) unsigned char shared[];
  let_next_start();
  if (p.tables != nullptr) wait_for_launcher();
  attend_cta<Format, Tuning> cta(p, shared);
  cta.attend(p.items()[blockIdx.x / static_cast<unsigned>(p.kv_heads)],
             static_cast<int>(blockIdx.x) % p.kv_heads);
  cta.write();
}

/// Joins the parts of row tiles. Grid: (splits, kv heads, rows of a tile); one cta for each row.
template <class Tuning>
__global__ void __launch_bounds__(merge_warps * 32)
    attend_merge_kernel(const __grid_constant__ attend_parameters p) {
  let_next_start();
  wait_for_launcher();
  const attend_split& split = p.splits()[blockIdx.x];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int row = static_cast<int>(blockIdx.z);
  if (row >= split.rows) return;
  const std::int64_t first = kv_head * p.part_row_count + split.part_row + row;
  const row_parts parts{p.part_rows + first, p.part_values + first * Tuning::columns, Tuning::rows};
  const int at = split.first_row + row;
  part_merger<Tuning::columns>().merge(p.out, parts, p.runs() + split.first_run, split.runs,
                                       split.first_query + at / p.group_heads,
                                       kv_head * p.group_heads + at % p.group_heads);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
