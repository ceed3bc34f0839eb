// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/pack_sequences.hpp>
#include <initializer_list>
#include <vector>

#include "support/random.hpp"

namespace blockattn_test {

inline block_layout layout_of(const std::vector<index_t>& lengths) {
  return with_final_block(block_layout::from_lengths(lengths));
}

/// Calls visit(lengths) for every list of at most `max_blocks` lengths in [0, max_length].
template <class Visit>
void for_each_lengths(std::size_t max_blocks, index_t max_length, const Visit& visit) {
  for (std::size_t blocks = 0; blocks <= max_blocks; ++blocks) {
    std::vector<index_t> lengths(blocks, 0);
    for (bool more = true; more;) {
      visit(lengths);
      more = false;
      for (index_t& length : lengths) {  // an odometer
        if (length < max_length) {
          ++length;
          more = true;
          break;
        }
        length = 0;
      }
    }
  }
}

/// Ragged sequences, some without blocks, some blocks empty.
inline std::vector<std::vector<index_t>> random_lengths(random_source& random,
                                                        index_t max_length = 9) {
  std::vector<std::vector<index_t>> sequences(static_cast<std::size_t>(random.integer(0, 3)));
  for (std::vector<index_t>& lengths : sequences) {
    lengths.resize(static_cast<std::size_t>(random.integer(0, 5)));
    for (index_t& length : lengths) length = random.chance(0.2) ? 0 : random.integer(1, max_length);
  }
  return sequences;
}

inline block_layout packed_layout(const std::vector<std::vector<index_t>>& sequences) {
  std::vector<block_layout> parts;
  for (const std::vector<index_t>& lengths : sequences) parts.push_back(layout_of(lengths));
  return pack_sequences(parts);
}

}  // namespace blockattn_test
