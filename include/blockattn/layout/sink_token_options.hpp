// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/index.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Where the sink tokens of a block stand among its tokens.
enum class sink_placement { block_start, block_end };

/// Who owns a set of sink tokens: each block its own, or all blocks of a sequence the same one.
enum class sink_sharing { per_block, shared };

/// What position a sink token has: its place in the run like any token, or its number in its set
/// (0, 1, ...), in which case all other tokens keep the positions that they have without sinks.
enum class sink_positions { counted, pinned };

/// How `with_sink_tokens` inserts sink tokens into a layout.
struct sink_token_options {
  index_t tokens_per_block = 1;  ///< rows in one set; >= 0
  sink_placement placement = sink_placement::block_start;
  sink_sharing sharing = sink_sharing::per_block;
  sink_positions positions = sink_positions::counted;
  friend constexpr bool operator==(const sink_token_options&, const sink_token_options&) = default;
};

}  // namespace blockattn::inline BLOCKATTN_ABI
