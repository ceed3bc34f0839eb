// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/async_copy.cuh>
#include <blockattn/cuda/plan_lists.cuh>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What a walk over tiles needs once for each tile: in shared memory, because the products take
/// every register.
struct walk_state {
  device_span spans[3];           ///< span s at s % 3: the current one and the next
  tile_visibility visibility[2];  ///< of tile t at t % 2: the current one and the next
  plan_lists lists;
  int tiles;  ///< of the item
};

/// Which inner tokens of a tile are to be read.
struct read_tokens {
  std::uint64_t bits[2];

  /// Of token first + later, first < 64; `later` is a constant.
  __device__ __forceinline__ bool contains(int first, int later) const {
    return ((later < 64 ? bits[0] : bits[1]) >> first >> (later % 64) & 1U) != 0;
  }
};

/// Walks over the inner tiles of an item, `Inner` tokens each, with all threads of a cta. A loop
/// over tiles t waits for its copies, meets at a barrier, calls `advance` when there is a next
/// tile, and then, behind the barrier after whoever used its place, `begin_tile(t + 1)`. Spans
/// arrive by asynchronous copies of thread 0, one ahead of the walk.
template <int Inner>
class tile_walk {
 public:
  /// Ends with a barrier. The copies of the first prefetch belong to the caller's first group.
  __device__ __forceinline__ tile_walk(walk_state& state,
                                       const plan_lists& lists,
                                       const work_item& item)
      : state_(state), span_(item.span), tile_(item.first_tile) {
    if (threadIdx.x == 0) {
      state_.lists = lists;
      state_.tiles = item.tiles;
      state_.spans[span_ % 3] = lists.spans[span_];
    }
    __syncthreads();
    prefetch(span_ + 1);
  }

  __device__ __forceinline__ int tiles() const { return state_.tiles; }
  __device__ __forceinline__ int tile() const { return tile_; }
  __device__ __forceinline__ const tile_slice* slices() const { return state_.lists.slices; }
  __device__ __forceinline__ tile_visibility visibility(int t) const {
    return state_.visibility[t % 2];
  }

  __device__ __forceinline__ void advance() {
    if (++tile_ != state_.spans[span_ % 3].inner_end) return;
    ++span_;
    tile_ = state_.spans[span_ % 3].inner_begin;
    prefetch(span_ + 1);
  }

  /// Notes what the current tile, number t of the item, shows, and says what of it to read.
  __device__ __forceinline__ read_tokens begin_tile(int t, int inner_tokens) const {
    const device_span& span = state_.spans[span_ % 3];
    const int slice_count = span.slices_end - span.slices_begin;
    const int tokens = inner_tokens - tile_ * Inner;
    if (threadIdx.x == 0) state_.visibility[t % 2] = {span.slices_begin, slice_count, tokens};
    read_tokens read;
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      const int in_word = tokens - 64 * word;
      read.bits[word] = slice_count > 0 ? span.seen[word]
                        : in_word >= 64 ? ~std::uint64_t{0}
                        : in_word <= 0  ? 0
                                        : (std::uint64_t{1} << in_word) - 1;
    }
    return read;
  }

 private:
  /// The place of the span was last read before the last barrier.
  __device__ __forceinline__ void prefetch(int span) const {
    if (threadIdx.x != 0) return;
    const char* const from = reinterpret_cast<const char*>(state_.lists.spans + span);
    const std::uint32_t to = shared_address(&state_.spans[span % 3]);
    copy_async(to, from, 16);
    copy_async(to + 16, from + 16, 16);
  }

  walk_state& state_;
  int span_;
  int tile_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
