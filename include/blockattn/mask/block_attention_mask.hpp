// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/enumerator_check.hpp>
#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/attention_mask.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Which blocks see the sink tokens of a block besides the block itself.
enum class sink_visibility {
  own,            ///< none
  own_and_final,  ///< the final block of its sequence, as it sees every token
  all             ///< every later block of its sequence
};

struct block_attention_options {
  blockattn::sink_visibility sink_visibility = blockattn::sink_visibility::own_and_final;
};

/// Block attention (arXiv 2409.15355): a token sees the earlier tokens of its own block and itself;
/// the tokens of the final block see all earlier tokens of their sequence:
///
///     visible(i, j) = j <= i, same sequence, and (b(i) = b(j) or b(i) is final)
///
/// Sink tokens change this for other blocks only: `own` hides them from the final block, `all`
/// shows them to every later block. A shared set belongs to every block of its sequence, so all
/// blocks see it whatever the choice.
///
/// The mask has at most 3 slices per block. O(blocks log blocks). Errors: a sequence of blocks
/// without a final one.
inline attention_mask block_attention_mask(const block_layout& layout,
                                           const block_attention_options& options = {}) {
  detail::check_enumerator("block_attention_mask", "sink_visibility", options.sink_visibility,
                           sink_visibility::all);
  std::vector<slice> slices;
  for (index_t s = 0; s < layout.sequences(); ++s) {
    const index_range blocks = layout.sequence_blocks(s);
    if (blocks.empty()) continue;
    detail::require_final_block("block_attention_mask", layout, s);
    const index_range final_tokens = layout.block(blocks.end - 1);
    // The final block sees one causal run of keys, interrupted by hidden sinks.
    index_t run_begin = layout.sequence_tokens(s).begin;
    for (index_t b = blocks.begin; b + 1 < blocks.end; ++b) {
      const index_range tokens = layout.block(b);
      const index_range sinks = layout.sink_tokens(b);
      const bool shared = layout.is_shared_sink_block(b);
      slices.push_back({.queries = tokens, .keys = tokens, .upper = 0});
      if (shared || options.sink_visibility == sink_visibility::all) {
        slices.push_back({.queries = {tokens.end, final_tokens.begin}, .keys = sinks});
      }
      if (!shared && !sinks.empty() && options.sink_visibility == sink_visibility::own) {
        slices.push_back({.queries = final_tokens, .keys = {run_begin, sinks.begin}});
        run_begin = sinks.end;
      }
    }
    slices.push_back({.queries = final_tokens, .keys = {run_begin, final_tokens.end}, .upper = 0});
  }
  return attention_mask::from_disjoint_slices(layout.tokens(), layout.tokens(), std::move(slices));
}

}  // namespace blockattn::inline BLOCKATTN_ABI
