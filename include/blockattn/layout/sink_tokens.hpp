// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/layout/block_layout.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Inserts sink tokens into a layout and returns the layout of the longer axis, which maps indices
/// both ways (`source_of`, `token_of`).
///
/// per_block: every block, the final one and empty ones included, gets tokens_per_block sinks at
/// its start or end; block numbers stay. shared: every sequence that has a block gets one token
/// block of sinks before its first block, so block numbers grow by one per such sequence; that
/// block is never the final one. A shared set stands at the start only: behind the tokens that
/// should see it a causal mask would hide it. Zero tokens per block return the layout unchanged.
///
/// O(blocks). Errors: a layout that has sinks already; a negative count; a shared set at the end;
/// more than max_axis_tokens.
inline block_layout with_sink_tokens(const block_layout& layout,
                                     const sink_token_options& options) {
  const index_t sinks = options.tokens_per_block;
  const bool shared = options.sharing == sink_sharing::shared;
  detail::require(!layout.has_sinks(), "with_sink_tokens: layout has ",
                  layout.sink_options().tokens_per_block,
                  " sink tokens per block already; insert sinks once, into the source layout");
  constexpr const char* function = "with_sink_tokens";
  detail::check_enumerator(function, "placement", options.placement, sink_placement::block_end);
  detail::check_enumerator(function, "sharing", options.sharing, sink_sharing::shared);
  detail::check_enumerator(function, "positions", options.positions, sink_positions::pinned);
  detail::require(sinks >= 0, "with_sink_tokens: tokens_per_block is ", sinks,
                  ", must not be negative");
  detail::require(!(shared && options.placement == sink_placement::block_end),
                  "with_sink_tokens: sharing is shared and placement is block_end; a shared set "
                  "stands at the start of its sequence");
  if (sinks == 0) return layout;

  block_layout result;
  result.sinks_ = options;
  for (index_t s = 0; s < layout.sequences(); ++s) {
    const index_range blocks = layout.sequence_blocks(s);
    if (shared && !blocks.empty()) result.append_block("with_sink_tokens", sinks, 0);
    for (index_t b = blocks.begin; b < blocks.end; ++b) {
      const index_t length = layout.block(b).size();
      // Checked apart: length + sinks must not overflow before append_block sees it.
      detail::require(shared || sinks <= max_axis_tokens - length,
                      "with_sink_tokens: tokens_per_block is ", sinks, ", the longest axis has ",
                      max_axis_tokens, " tokens");
      result.append_block("with_sink_tokens", shared ? length : length + sinks, length);
    }
    result.close_sequence(layout.has_final_block(s));
  }
  return result;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
