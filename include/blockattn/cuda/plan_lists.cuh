// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cuda/tile_mask.cuh>
#include <blockattn/plan/tile_plan.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cuda::detail {

/// What one cta does for one head: a run of the inner tiles of one outer tile. Outer tiles are
/// those of queries and inner ones those of keys, or the other way round.
struct alignas(16) work_item {
  std::int32_t outer_tile;
  std::int32_t tiles;       ///< inner tiles; 0 for an outer tile that sees nothing
  std::int32_t span;        ///< the run begins in this span ...
  std::int32_t first_tile;  ///< ... with this inner tile
  std::int32_t part;        ///< number of the partial result; -1 when nothing is cut off
};

/// An outer tile whose inner tiles several items share.
struct split_tile {
  std::int32_t outer_tile;
  std::int32_t first_part;
  std::int32_t parts;
};

/// A run of full tiles or one partial tile, and which inner tokens of that take part in the plan at
/// all.
struct alignas(16) device_span {
  std::int32_t inner_begin, inner_end;
  std::int32_t slices_begin, slices_end;
  std::uint64_t seen[2];  ///< a bit for each inner token
};

/// The tile lists of one direction of a plan, in device memory.
struct plan_lists {
  const device_span* spans;  ///< and one more, so that a prefetch may pass the end
  const tile_slice* slices;  ///< of the partial tiles, at their spans' slices_begin
  const work_item* items;    ///< most tiles first, or one for each outer tile in order
  const split_tile* splits;
  const std::int32_t* order;  ///< outer tiles, most tiles first, where items are in order
  const std::uint64_t* seen;  ///< key_lists: a bit for each key that a query sees, from bit 0 on
  std::int32_t item_count;
  std::int32_t split_count;
};

/// What the lists of a plan serve; they lie side by side, so many for each plan.
enum list_kind : int {
  forward_lists,  ///< by query, long rows cut
  query_lists,    ///< by query, whole rows: for the gradient of queries
  key_lists,      ///< by key, whole columns: for those of keys and values
  list_kinds
};

}  // namespace blockattn::inline BLOCKATTN_ABI::cuda::detail
