// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <numeric>
#include <vector>

/// \file
/// Positions feed RoPE and nothing else: who sees whom compares token indices. Any
/// `std::span<const double>` of (tokens) values serves as positions, repeating, overlapping or
/// fractional; these two are the usual ones.

namespace blockattn::inline BLOCKATTN_ABI {

namespace detail {

/// positions[token] = first, first + 1, ... over a run of tokens.
inline void number_run(std::vector<double>& positions, const index_range& run, index_t first) {
  std::iota(positions.begin() + run.begin, positions.begin() + run.end, static_cast<double>(first));
}

}  // namespace detail

/// (tokens) positions that count from 0 over each sequence. Pinned sinks have 0, 1, ... in every
/// set and the other tokens their position without sinks. O(tokens).
inline std::vector<double> global_positions(const block_layout& layout) {
  std::vector<double> positions(static_cast<std::size_t>(layout.tokens()));
  const bool pinned = layout.sink_options().positions == sink_positions::pinned;
  for (index_t s = 0; s < layout.sequences(); ++s) {
    const index_range blocks = layout.sequence_blocks(s);
    if (blocks.empty()) continue;
    const index_t origin = layout.block(blocks.begin).begin;
    const index_t source_origin = layout.source_range(blocks.begin).begin;
    for (index_t b = blocks.begin; b < blocks.end; ++b) {
      const index_range sinks = layout.sink_tokens(b);
      const index_range content = layout.content_tokens(b);
      detail::number_run(positions, sinks, pinned ? 0 : sinks.begin - origin);
      detail::number_run(
          positions, content,
          pinned ? layout.source_range(b).begin - source_origin : content.begin - origin);
    }
  }
  return positions;
}

/// (tokens) positions that restart from 0 in each block, as the block is encoded alone. A shared
/// sink set belongs to every block: when its r tokens count, the tokens of the other blocks start
/// at r. Pinned sinks have 0, 1, ... and the other tokens their position without sinks. O(tokens).
inline std::vector<double> block_positions(const block_layout& layout) {
  std::vector<double> positions(static_cast<std::size_t>(layout.tokens()));
  const sink_token_options& options = layout.sink_options();
  const bool pinned = options.positions == sink_positions::pinned;
  const index_t shared = options.sharing == sink_sharing::shared ? options.tokens_per_block : 0;
  for (index_t b = 0; b < layout.blocks(); ++b) {
    const index_t origin = layout.block(b).begin;
    const index_range sinks = layout.sink_tokens(b);
    const index_range content = layout.content_tokens(b);
    detail::number_run(positions, sinks, pinned ? 0 : sinks.begin - origin);
    detail::number_run(positions, content, pinned ? 0 : content.begin - origin + shared);
  }
  return positions;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
