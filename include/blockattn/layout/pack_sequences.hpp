// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/block_layout.hpp>
#include <span>

namespace blockattn::inline BLOCKATTN_ABI {

/// Puts the sequences of several layouts one after the other on one axis: sequence, block and token
/// numbers of a part are shifted by those of the parts before it. O(blocks).
/// Errors: parts with different sink options; more than max_axis_tokens in total.
inline block_layout pack_sequences(std::span<const block_layout> parts) {
  block_layout packed;
  if (!parts.empty()) packed.sinks_ = parts[0].sinks_;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const block_layout& part = parts[p];
    detail::require(part.sinks_ == packed.sinks_, "pack_sequences: parts[", p,
                    "] has other sink token options than parts[0] (", part.sinks_.tokens_per_block,
                    " and ", packed.sinks_.tokens_per_block,
                    " tokens per block); pack first, then insert sinks");
    for (index_t s = 0; s < part.sequences(); ++s) {
      const index_range blocks = part.sequence_blocks(s);
      for (index_t b = blocks.begin; b < blocks.end; ++b) {
        packed.append_block("pack_sequences", part.block(b).size(), part.source_range(b).size());
      }
      packed.close_sequence(part.has_final_block(s));
    }
  }
  return packed;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
