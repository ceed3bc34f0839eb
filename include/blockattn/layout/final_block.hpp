// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/layout/block_layout.hpp>
#include <utility>

namespace blockattn::inline BLOCKATTN_ABI {

/// Declares the last block of every sequence its final block, which sees all earlier blocks:
///     with_final_block(block_layout::from_offsets(cu_seqlens))
/// A sequence without blocks stays without one. O(sequences).
inline block_layout with_final_block(block_layout layout) {
  for (index_t s = 0; s < layout.sequences(); ++s) {
    layout.has_final_[static_cast<std::size_t>(s)] = !layout.sequence_blocks(s).empty();
  }
  return layout;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
