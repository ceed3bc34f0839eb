// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/simd.hpp>
#include <blockattn/plan/tile_plan.hpp>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// Into how many runs of key tiles backward cuts a kv head: as many as give 32 units of work in
/// all, at most 8, for each run has sums of d_q of its own. The shape of the call decides, never
/// the number of threads: sums add up in the same order everywhere.
constexpr index_t key_chunk_count(index_t kv_heads, index_t key_tiles) noexcept {
  constexpr index_t wanted_units = 32;
  constexpr index_t most = 8;
  const index_t wanted = kv_heads > 0 ? ceil_divide(wanted_units, kv_heads) : 1;
  return std::max<index_t>(1, std::min({wanted, most, key_tiles}));
}

/// Chunk `chunk` of `chunks` runs of key tiles with about the same number of tiles to visit. The
/// chunks cover all key tiles, also those that nobody sees. O(key tiles).
inline index_range key_tiles_of_chunk(const tile_lists& by_key,
                                      index_t chunk,
                                      index_t chunks) noexcept {
  index_t total = 0;
  for (const std::int64_t count : by_key.tile_count) total += count;
  const auto first_tile_of = [&](index_t c) {
    if (c == 0) return index_t{0};
    if (c == chunks) return by_key.outer_tiles;
    const index_t before = total / chunks * c + total % chunks * c / chunks;
    index_t tile = 0;
    for (index_t visited = 0; tile < by_key.outer_tiles && visited < before; ++tile) {
      visited += by_key.tile_count[static_cast<std::size_t>(tile)];
    }
    return tile;
  };
  return {first_tile_of(chunk), first_tile_of(chunk + 1)};
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail
