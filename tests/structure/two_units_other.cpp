// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/blockattn.hpp>

blockattn::index_t visible_pairs_elsewhere(const blockattn::block_layout& layout) {
  return blockattn::visible_pairs(blockattn::block_attention_mask(layout));
}
