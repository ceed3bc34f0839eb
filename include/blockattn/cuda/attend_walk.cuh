// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/attend_tables.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// Which keys a tile holds.
struct key_tile {
  std::int32_t group;
  std::int32_t first_key;  ///< of the group
};

/// Where the rows of coming tiles lie: in shared memory, because the products take every register.
template <int Keys, int Stages>
struct attend_walk_state {
  const std::uint16_t* k[2][Keys];  ///< of tile t at t % 2; null behind the group's end
  const std::uint16_t* v[2][Keys];
  std::int32_t segment[Keys];  ///< of the tile that was prepared last
  std::int32_t offset[Keys];
  key_tile tiles[Stages + 1];  ///< of tile t at t % (Stages + 1)
};

/// Walks over the key tiles of an item with all threads of a cta: `prepare(t)` finds the rows of
/// tile t, and behind the next barrier they may be loaded.
template <int Keys, int Stages>
class attend_walk {
 public:
  using state = attend_walk_state<Keys, Stages>;

  __device__ __forceinline__
  attend_walk(state& shared, const attend_parameters& p, const attend_item& item, int kv_head)
      : state_(shared),
        p_(p),
        kv_head_(kv_head),
        tiles_(item.tiles),
        group_(item.group),
        first_key_(item.first_key) {
    const int row = static_cast<int>(threadIdx.x);
    if (row < Keys) {
      state_.segment[row] = item.segment;
      state_.offset[row] = item.offset + row;
    }
  }

  __device__ __forceinline__ int tiles() const { return tiles_; }
  __device__ __forceinline__ key_tile tile(int t) const { return state_.tiles[t % (Stages + 1)]; }

  /// Tiles are prepared in order, each once.
  __device__ __forceinline__ void prepare(int t) {
    if (t >= tiles_) return;
    const bool enters = first_key_ >= p_.groups[group_].keys;
    if (enters) {
      ++group_;
      first_key_ = 0;
    }
    const key_group& group = p_.groups[group_];
    if (threadIdx.x == 0) state_.tiles[t % (Stages + 1)] = {group_, first_key_};
    const int row = static_cast<int>(threadIdx.x);
    if (row < Keys) {
      const bool exists = first_key_ + row < group.keys;
      int segment = enters ? group.first_segment : state_.segment[row];
      int offset = enters ? row : state_.offset[row];
      if (exists) {
        for (; offset >= p_.segments[segment].keys; ++segment) offset -= p_.segments[segment].keys;
        const device_segment& s = p_.segments[segment];
        state_.k[t % 2][row] = s.k + offset * s.k_token_stride + kv_head_ * s.k_head_stride;
        state_.v[t % 2][row] = s.v + offset * s.v_token_stride + kv_head_ * s.v_head_stride;
      } else {
        state_.k[t % 2][row] = nullptr;
        state_.v[t % 2][row] = nullptr;
      }
      state_.segment[row] = segment;
      state_.offset[row] = offset + Keys;
    }
    first_key_ += Keys;
  }

 private:
  state& state_;
  const attend_parameters& p_;
  int kv_head_;
  int tiles_;
  int group_;      ///< of the next tile to be prepared
  int first_key_;  ///< likewise
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
