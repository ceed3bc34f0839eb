// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// The mask as (query_tokens, key_tokens) bytes, row-major: 1 = visible. For tests and small
/// examples. O(query_tokens * key_tokens) time and memory.
inline std::vector<std::uint8_t> to_dense(const attention_mask& mask) {
  const index_t columns = mask.key_tokens();
  std::vector<std::uint8_t> dense(static_cast<std::size_t>(mask.query_tokens() * columns));
  for (const slice& s : mask.slices()) {
    for (index_t query = s.queries.begin; query < s.queries.end; ++query) {
      const index_range keys = s.keys_of(query);
      std::fill_n(dense.begin() + query * columns + keys.begin, keys.size(), std::uint8_t{1});
    }
  }
  return dense;
}

/// The mask as text, a line per query: `x` = visible, `.` = hidden. Block attention over blocks
/// [1, 2] and the final block [1] is "x...\n.x..\n.xx.\nxxxx\n".
/// O(query_tokens * key_tokens).
inline std::string picture(const attention_mask& mask) {
  const std::vector<std::uint8_t> dense = to_dense(mask);
  const auto columns = static_cast<std::size_t>(mask.key_tokens());
  const auto rows = static_cast<std::size_t>(mask.query_tokens());
  std::string text;
  text.reserve(rows * (columns + 1));
  for (std::size_t query = 0; query < rows; ++query) {
    for (std::size_t key = 0; key < columns; ++key) {
      text += dense[query * columns + key] != 0 ? 'x' : '.';
    }
    text += '\n';
  }
  return text;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
