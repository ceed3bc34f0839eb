// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <blockattn/mask/attention_mask.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Block attention whose first block is a prefix (a system prompt) that every block of its sequence
/// sees, as APE (arXiv 2502.05431) and superposition prompting have it:
///
///     visible(i, j) = j <= i, same sequence, and (b(i) = b(j) or b(i) is final or b(j) is first)
///
/// Sink tokens are ordinary tokens of their block. A shared sink set is seen by all too, and the
/// prefix is the block after it. At most 2 slices per block. O(blocks log blocks).
inline attention_mask shared_prefix_mask(const block_layout& layout) {
  std::vector<slice> slices;
  for (index_t s = 0; s < layout.sequences(); ++s) {
    const index_range blocks = layout.sequence_blocks(s);
    if (blocks.empty()) continue;
    const index_t prefix_block = blocks.begin + (layout.is_shared_sink_block(blocks.begin) ? 1 : 0);
    const index_range sequence = layout.sequence_tokens(s);
    const index_range prefix = {sequence.begin, layout.block(prefix_block).end};
    slices.push_back({.queries = prefix, .keys = prefix, .upper = 0});
    if (prefix_block + 1 == blocks.end) continue;  // the prefix is the final block
    for (index_t b = prefix_block + 1; b + 1 < blocks.end; ++b) {
      const index_range own = layout.block(b);
      slices.push_back({.queries = own, .keys = own, .upper = 0});
    }
    const index_range final_tokens = layout.block(blocks.end - 1);
    slices.push_back({.queries = {prefix.end, final_tokens.begin}, .keys = prefix});
    slices.push_back({.queries = final_tokens, .keys = sequence, .upper = 0});
  }
  return attention_mask::from_disjoint_slices(layout.tokens(), layout.tokens(), std::move(slices));
}

}  // namespace blockattn::inline BLOCKATTN_ABI
