// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/attend_tables.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Which keys a tile holds.
struct key_tile {
  std::int32_t group;
  std::int32_t keys_left;  ///< of the group, from the tile's first key on
  bool enters;             ///< the tile before is not of the group
};

/// Rows of keys or values, `stride` elements apart from `first`.
struct key_run {
  const std::uint16_t* first;  ///< null: each row lies at a place of its own
  std::int64_t stride;
};

/// Where a tile begins; keys that are left count from its first one.
struct tile_start {
  std::int32_t group;
  std::int32_t segment;
  std::int32_t group_left;
  std::int32_t segment_left;
  bool follows;  ///< this tile and the one before are of one segment
};

/// What a walk over key tiles knows of coming ones: in shared memory, because the products take
/// every register.
template <int Keys>
struct attend_walk_state {
  key_run k_run[2], v_run[2];            ///< of tile t at t % 2
  const std::uint16_t* k_rows[2][Keys];  ///< of a tile that several segments share
  const std::uint16_t* v_rows[2][Keys];
  int rows[2];  ///< in the tile
  tile_start start[2];
  const device_segment* segments;
  const key_group* groups;
  key_group current;  ///< group of the tile that is attended to
  attend_item item;
  int kv_head;
  int first_query;                ///< of the item's rows
  static constexpr int ring = 4;  ///< a power of two above Stages
  key_tile tiles[ring];           ///< of tile t at t % ring
};

/// Walks over the key tiles of an item with all threads of a cta: `prepare(t)` finds the rows of
/// tile t, and behind the next barrier they may be loaded.
template <int Keys, int Stages>
class attend_walk {
 public:
  using state = attend_walk_state<Keys>;
  static_assert(Stages < state::ring);

  __device__ __forceinline__
  attend_walk(state& shared, const attend_parameters& p, const attend_item& item, int kv_head)
      : state_(shared) {
    if (threadIdx.x != 0) return;
    state_.segments = p.segments();
    state_.groups = p.groups();
    state_.item = item;
    state_.kv_head = kv_head;
    state_.first_query = item.first_row / p.group_heads;
    if (item.tiles == 0) return;
    state_.start[0] = {item.group, item.segment, p.groups()[item.group].keys - item.first_key,
                       p.segments()[item.segment].keys - item.offset, false};
    state_.current = p.groups()[item.group];
  }

  __device__ __forceinline__ const attend_item& item() const { return state_.item; }
  __device__ __forceinline__ int kv_head() const { return state_.kv_head; }
  __device__ __forceinline__ int tiles() const { return state_.item.tiles; }
  __device__ __forceinline__ key_tile tile(int t) const { return state_.tiles[t % state::ring]; }

  /// The group of the tile that was entered last.
  __device__ __forceinline__ const key_group& group() const { return state_.current; }
  /// Between two barriers, for a tile that enters a group.
  __device__ __forceinline__ void enter(int t) const {
    if (threadIdx.x == 0) state_.current = state_.groups[tile(t).group];
  }
  __device__ __forceinline__ int first_query() const { return state_.first_query; }

  /// Tiles are prepared in order, each once; a barrier is before each.
  __device__ __forceinline__ void prepare(int t) {
    if (t >= tiles()) return;
    tile_start start = state_.start[t % 2];
    const bool ends = start.group_left <= 0;
    if (ends) {
      const key_group& next = state_.groups[++start.group];
      start.group_left = next.keys;
      start.segment = next.first_segment;
      start.segment_left = state_.segments[start.segment].keys;
    }
    while (start.segment_left <= 0) {  // never where a tile follows
      start.segment_left += state_.segments[++start.segment].keys;
    }
    const int rows = min(Keys, start.group_left);
    if (threadIdx.x == 0) {
      state_.rows[t % 2] = rows;
      state_.tiles[t % state::ring] = {start.group, start.group_left, t == 0 || ends};
      state_.start[(t + 1) % 2] = {
          start.group, start.segment, start.group_left - Keys, start.segment_left - Keys,
          start.group_left > Keys &&
              start.segment_left - Keys >= min(Keys, start.group_left - Keys)};
    }
    if (start.follows) {
      if (threadIdx.x == 0) {
        follow(state_.k_run[(t + 1) % 2], state_.k_run[t % 2]);
        follow(state_.v_run[(t + 1) % 2], state_.v_run[t % 2]);
      }
      return;
    }
    const bool is_run = start.segment_left >= rows;
    const int row = static_cast<int>(threadIdx.x);
    if (row >= (is_run ? 1 : rows)) return;
    int segment = start.segment;
    int offset = state_.segments[segment].keys - start.segment_left + row;
    while (offset >= state_.segments[segment].keys) offset -= state_.segments[segment++].keys;
    const device_segment& s = state_.segments[segment];
    const std::uint16_t* const k = s.k + offset * s.k_token_stride + kv_head() * s.k_head_stride;
    const std::uint16_t* const v = s.v + offset * s.v_token_stride + kv_head() * s.v_head_stride;
    if (row == 0) {
      state_.k_run[t % 2] = {is_run ? k : nullptr, s.k_token_stride};
      state_.v_run[t % 2] = {is_run ? v : nullptr, s.v_token_stride};
    }
    state_.k_rows[t % 2][row] = k;
    state_.v_rows[t % 2][row] = v;
  }

 private:
  static __device__ __forceinline__ void follow(const key_run& before, key_run& now) {
    now = {before.first + Keys * before.stride, before.stride};
  }

  state& state_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
