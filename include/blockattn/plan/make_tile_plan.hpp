// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/error.hpp>
#include <blockattn/plan/seen_keys.hpp>
#include <blockattn/plan/tile_plan.hpp>
#include <blockattn/plan/tile_sweep.hpp>
#include <limits>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// What a plan lists besides its tiles by query row.
struct plan_options {
  bool transposed = false;  ///< also by key tile, which backward needs
};

namespace detail {

class tile_plan_builder {
 public:
  static tile_plan build(const attention_mask& mask,
                         const tile_shape& shape,
                         const plan_options& options) {
    const tiled_axis queries = {mask.query_tokens(), shape.queries};
    const tiled_axis keys = {mask.key_tokens(), shape.keys};
    tile_plan plan;
    plan.query_tokens_ = mask.query_tokens();
    plan.key_tokens_ = mask.key_tokens();
    plan.shape_ = shape;
    plan.slices_ = mask.slices();
    plan.seen_keys_ = seen_key_runs(plan.slices_);

    tile_statistics& statistics = plan.statistics_;
    for (const slice& s : plan.slices_) statistics.visible_pairs += visible_pairs(s);
    plan.by_query_ = tile_sweep(plan.slices_, queries, keys).run(statistics);
    statistics.empty_tiles =
        queries.tiles() * keys.tiles() - statistics.full_tiles - statistics.partial_tiles;

    if (options.transposed) {
      std::vector<slice> transposed;
      transposed.reserve(plan.slices_.size());
      for (const slice& s : plan.slices_) transposed.push_back(s.transposed());
      tile_statistics same_again;
      plan.by_key_ = tile_sweep(transposed, keys, queries).run(same_again);
      plan.has_transposed_ = true;
    }
    return plan;
  }
};

}  // namespace detail

/// Lists the non-empty tiles of a mask for tiles of shape.queries x shape.keys (the last tile of an
/// axis may be smaller). A tile is full when the visible pairs of all slices in it add up to its
/// area, else partial. Slice ids, also those of the transposed lists, refer to `plan.slices()`,
/// which are the slices of the mask.
///
/// Throws `error` when a tile side is not in [1, 2^31), when an axis has 2^31 tiles or more, when
/// the mask has 2^31 slices or more, when its area passes 2^63, or when the lists would need more
/// than 2^31 - 1 spans or slice ids.
///
/// Lists hold what changes from one row of tiles to the next, and that is what planning takes time
/// for: O(c log c + tiles of the longer axis) time and memory, where c counts for each slice the
/// rows of tiles in which it begins or ends or a diagonal cuts it, times the slices that share tiles
/// with it there. For block masks with any visibility of sinks that is the number of blocks and
/// rows, for gathered rows the number of gathered rows, for block dropout the number of slices;
/// never the number of tiles. A plan serves all layers, and all heads that share the mask.
inline tile_plan make_tile_plan(const attention_mask& mask,
                                const tile_shape& shape,
                                const plan_options& options = {}) {
  const auto check_axis = [](const char* tokens_name, index_t tokens, const char* side_name,
                             index_t side) {
    constexpr index_t limit = index_t{1} << 31;
    detail::require(1 <= side && side < limit, "make_tile_plan: ", side_name, " is ", side,
                    ", must be in [1, ", limit, ")");
    detail::require(tokens <= (limit - 1) * side, "make_tile_plan: ", tokens_name, " is ", tokens,
                    ", more than 2147483647 tiles of ", side_name, " = ", side);
  };
  check_axis("mask.query_tokens()", mask.query_tokens(), "shape.queries", shape.queries);
  check_axis("mask.key_tokens()", mask.key_tokens(), "shape.keys", shape.keys);
  detail::require(
      mask.key_tokens() == 0 ||
          mask.query_tokens() <= std::numeric_limits<index_t>::max() / mask.key_tokens(),
      "make_tile_plan: mask.query_tokens() x mask.key_tokens() is ", mask.query_tokens(), " x ",
      mask.key_tokens(), ", its pairs cannot be counted in 64 bits");
  detail::require_32_bits(static_cast<index_t>(mask.slices().size()), "mask.slices().size()");
  return detail::tile_plan_builder::build(mask, shape, options);
}

}  // namespace blockattn::inline BLOCKATTN_ABI
