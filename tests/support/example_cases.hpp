// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/attention_case.hpp"
#include "support/plain_tensors.hpp"

/// \file
/// Calls that tests of several verbs make.

namespace blockattn_test {

/// One head of each, contiguous tensors, value_dim 32.
inline attention_case plain_case(const attention_mask& mask,
                                 const tile_shape& shape,
                                 index_t head_dim) {
  attention_case c;
  c.kind = "plain";
  c.masks = {mask, shape};
  c.head_dim = head_dim;
  c.value_dim = 32;
  return c;
}

/// A call with everything: a plan per head, GQA, softcap, sink logits, many tiles. The key tiles
/// of the second mask have the given size; backward wants that of the first, 48.
inline attention_case rich_case(index_t second_key_tile) {
  attention_case c;
  c.kind = "rich";
  c.masks = {block_attention_mask(layout_of({90, 17, 0, 150, 60})), {16, 48}};
  c.masks.masks.push_back(sink_window_mask(c.query_tokens(), 4, 33));
  c.masks.shapes.push_back({7, second_key_tile});
  c.masks.head_to_mask = {1, 0, 0, 1, 1, 0};
  c.query_heads = 6;
  c.kv_heads = 2;
  c.head_dim = 40;
  c.value_dim = 64;
  c.options.softcap = 20;
  c.with_sink_logits = true;
  c.q.offset = c.v.offset = c.o.offset = 1;
  c.k.head_major = c.lse.head_major = true;
  return c;
}

/// Sizes and masks of the accuracy contract.
inline constexpr plain_sizes one_head_64 = {
    .query_heads = 1, .kv_heads = 1, .head_dim = 64, .value_dim = 64};
inline constexpr plain_sizes one_head_128 = {
    .query_heads = 1, .kv_heads = 1, .head_dim = 128, .value_dim = 128};
inline constexpr plain_sizes two_heads_128 = {
    .query_heads = 2, .kv_heads = 1, .head_dim = 128, .value_dim = 128};

inline named_mask causal_of(index_t tokens) { return {"causal", causal_mask(tokens)}; }
inline named_mask blocks_of(index_t tokens) {
  return {"block attention",
          block_attention_mask(layout_of({tokens / 2, tokens / 8, tokens / 5,
                                          tokens - tokens / 2 - tokens / 8 - tokens / 5}))};
}

}  // namespace blockattn_test
