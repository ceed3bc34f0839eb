// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/block_slice_merger.hpp>
#include <cstdint>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// How the tokens of one block see those of another: not at all, every pair, or key <= query by
/// token index.
enum class block_visibility : std::uint8_t { hidden, full, causal };

/// An arbitrary relation between blocks: with A = visibility[b(i) * blocks + b(j)],
///
///     visible(i, j) = A is full, or A is causal and j <= i
///
/// over the whole axis: blocks of different sequences see each other only if the matrix says so.
/// Sink tokens are ordinary tokens of their block; a shared sink set is a block of its own.
///
/// \param visibility (blocks, blocks), row-major, query block first
///
/// Neighbouring blocks are merged where they form one rectangle or band; at worst O(blocks^2)
/// slices. O(blocks^2 + slices log slices). Errors: a matrix of another size; a value that is no
/// block_visibility.
inline attention_mask block_visibility_mask(const block_layout& layout,
                                            std::span<const block_visibility> visibility) {
  const index_t blocks = layout.blocks();
  const auto entries = static_cast<index_t>(visibility.size());
  detail::require(blocks == 0 ? entries == 0 : entries % blocks == 0 && entries / blocks == blocks,
                  "block_visibility_mask: visibility holds ", entries, " entries, must hold ",
                  blocks, " x ", blocks);
  detail::block_slice_merger merger;
  for (index_t b = 0; b < blocks; ++b) {
    const index_range queries = layout.block(b);
    if (!queries.empty()) merger.begin_row(queries);
    for (index_t c = 0; c < blocks; ++c) {
      const block_visibility entry = visibility[static_cast<std::size_t>(b * blocks + c)];
      detail::require(entry <= block_visibility::causal, "block_visibility_mask: visibility[", b,
                      "][", c, "] is ", static_cast<int>(entry), ", no block_visibility");
      if (entry == block_visibility::hidden || queries.empty()) continue;
      // Off the diagonal causal is all or nothing.
      if (entry == block_visibility::full || c < b) merger.add(layout.block(c), false);
      if (entry == block_visibility::causal && c == b) merger.add(layout.block(c), true);
    }
    if (!queries.empty()) merger.end_row();
  }
  return attention_mask::from_disjoint_slices(layout.tokens(), layout.tokens(), merger.take());
}

}  // namespace blockattn::inline BLOCKATTN_ABI
