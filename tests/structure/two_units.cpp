// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// Two translation units that include everything link into one program and agree.

#include <blockattn/blockattn.hpp>

blockattn::index_t visible_pairs_elsewhere(const blockattn::block_layout& layout);

int main() {
  const blockattn::index_t lengths[] = {1, 2, 1};
  const auto layout = blockattn::with_final_block(blockattn::block_layout::from_lengths(lengths));
  const auto here = blockattn::visible_pairs(blockattn::block_attention_mask(layout));
  return here == 8 && visible_pairs_elsewhere(layout) == here ? 0 : 1;
}
