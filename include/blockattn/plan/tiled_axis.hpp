// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/error.hpp>
#include <blockattn/core/range.hpp>
#include <cstdint>
#include <limits>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// A token axis cut into tiles; the last tile may be shorter.
struct tiled_axis {
  index_t tokens = 0;
  index_t tile_tokens = 1;

  constexpr index_t tiles() const noexcept { return ceil_divide(tokens, tile_tokens); }
  constexpr index_t tile_of(index_t token) const noexcept { return token / tile_tokens; }
  /// The first tile that begins at `token` or behind it.
  constexpr index_t tile_from(index_t token) const noexcept {
    return ceil_divide(token, tile_tokens);
  }
  constexpr index_range tokens_of(index_t tile) const noexcept {
    return {tile * tile_tokens, std::min(tokens, (tile + 1) * tile_tokens)};
  }
  /// The tokens of a run of tiles, which is not empty.
  constexpr index_t tokens_in(const index_range& run) const noexcept {
    return std::min(tokens, run.end * tile_tokens) - run.begin * tile_tokens;
  }
  /// The tiles that meet a non-empty range.
  constexpr index_range tiles_meeting(const index_range& range) const noexcept {
    return {tile_of(range.begin), tile_from(range.end)};
  }
  /// The tiles that lie inside a range (possibly none: empty).
  constexpr index_range tiles_inside(const index_range& range) const noexcept {
    return {tile_from(range.begin), range.end == tokens ? tiles() : tile_of(range.end)};
  }
};

/// Plans store 32-bit numbers. Throws `error` when a count does not fit.
inline void require_32_bits(index_t count, const char* what) {
  require(count <= std::numeric_limits<std::int32_t>::max(), "make_tile_plan: ", what, " is ",
          count, ", a plan holds at most 2147483647; use larger tiles or split the mask");
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
