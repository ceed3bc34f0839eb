// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/sink_tokens.hpp>
#include <blockattn/mask/block_attention_mask.hpp>
#include <blockattn/mask/block_visibility_mask.hpp>
#include <blockattn/mask/causal_mask.hpp>
#include <blockattn/mask/custom_mask.hpp>
#include <blockattn/mask/gather_mask.hpp>
#include <blockattn/mask/packed_documents_mask.hpp>
#include <blockattn/mask/shared_prefix_mask.hpp>
#include <blockattn/mask/window_mask.hpp>
#include <string>

#include "layout/layout_cases.hpp"
#include "plan/plan_masks.hpp"

namespace blockattn_test {

struct named_mask {
  std::string kind;
  attention_mask mask;
};

/// Ragged sequences on one axis, half of the time with sink tokens of some kind.
inline block_layout random_block_layout(random_source& random, index_t max_block) {
  block_layout layout = packed_layout(random_lengths(random, max_block));
  if (random.chance(0.5)) return layout;
  const bool shared = random.chance(0.3);
  const bool at_end = !shared && random.chance(0.3);
  return with_sink_tokens(
      layout, {.tokens_per_block = random.integer(1, 4),
               .placement = at_end ? sink_placement::block_end : sink_placement::block_start,
               .sharing = shared ? sink_sharing::shared : sink_sharing::per_block});
}

/// Increasing random indices: each token with the given probability.
inline std::vector<index_t> random_tokens(random_source& random, index_t tokens, double keep) {
  std::vector<index_t> picked;
  for (index_t token = 0; token < tokens; ++token) {
    if (random.chance(keep)) picked.push_back(token);
  }
  return picked;
}

inline attention_mask random_visibility_mask(random_source& random, const block_layout& layout) {
  std::vector<block_visibility> visibility(
      static_cast<std::size_t>(layout.blocks() * layout.blocks()));
  for (block_visibility& entry : visibility) {
    entry = static_cast<block_visibility>(random.integer(0, 2));
  }
  return block_visibility_mask(layout, visibility);
}

/// A mask of one of the builders' kinds over random ragged axes; empty axes and rows that see
/// nothing included. Each drawn number has a name of its own: the order in which arguments are
/// evaluated is the compiler's choice, and a seed must mean the same everywhere.
inline named_mask random_built_mask(random_source& random, index_t max_block) {
  const index_t queries = random.integer(0, 3 * max_block);
  const index_t keys = random.integer(0, 3 * max_block);
  const index_t window = random.integer(1, max_block);
  const index_t choice = random.integer(0, 5);
  const double density = random.real(0, 1);
  const index_t kind = random.integer(0, 11);
  const block_layout layout = random_block_layout(random, max_block);
  switch (kind) {
    case 0:
      return {"full", full_mask(queries, keys)};
    case 1:
      return {"causal", causal_mask(queries, keys)};
    case 2:
      return {"block attention", block_attention_mask(layout)};
    case 3:
      return {"block attention, other sinks",
              block_attention_mask(layout, {static_cast<sink_visibility>(choice / 2)})};
    case 4:
      return {"shared prefix", shared_prefix_mask(layout)};
    case 5:
      return {"sliding window", sliding_window_mask(queries, window)};
    case 6:
      return {"sinks and window", sink_window_mask(queries, choice, window)};
    case 7:
      return {"packed documents",
              packed_documents_mask(layout, static_cast<document_attention>(choice / 3))};
    case 8:
      return {"block visibility", random_visibility_mask(random, layout)};
    case 9:
      return {"custom", custom_mask(queries, keys, [&](index_t /*query*/, index_t /*key*/) {
                return random.chance(density);
              })};
    case 10:
      return {"gathered queries",
              gather_queries(causal_mask(keys), random_tokens(random, keys, density))};
    default:
      return {"rectangles and bands", random_masks(random, 0.2 + 0.7 * density)(queries, keys, 4)};
  }
}

/// `random_built_mask`, sometimes transposed, sometimes with a run of keys hidden from all rows.
inline named_mask random_attention_mask(random_source& random, index_t max_block) {
  named_mask drawn = random_built_mask(random, max_block);
  if (random.chance(0.15)) drawn = {drawn.kind + ", transposed", transposed(drawn.mask)};
  if (!random.chance(0.25)) return drawn;
  const attention_mask& mask = drawn.mask;
  const index_t begin = random.integer(0, mask.key_tokens());
  const index_t end = random.integer(begin, mask.key_tokens());
  std::vector<slice> slices;
  for (const slice& s : mask.slices()) {
    slices.push_back(cut(s, s.queries, {0, begin}));
    slices.push_back(cut(s, s.queries, {end, mask.key_tokens()}));
  }
  return {drawn.kind + ", keys hidden",
          attention_mask::from_disjoint_slices(mask.query_tokens(), mask.key_tokens(), slices)};
}

}  // namespace blockattn_test
