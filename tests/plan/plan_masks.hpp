// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <vector>

#include "support/random.hpp"

namespace blockattn_test {

/// Slices written by hand, so that the plan's tests do not lean on the mask builders.
inline attention_mask causal(index_t tokens) {
  return attention_mask::from_disjoint_slices(
      tokens, tokens, {{.queries = {0, tokens}, .keys = {0, tokens}, .upper = 0}});
}

inline attention_mask window(index_t tokens, index_t width) {
  return attention_mask::from_disjoint_slices(
      tokens, tokens,
      {{.queries = {0, tokens}, .keys = {0, tokens}, .lower = 1 - width, .upper = 0}});
}

/// Block attention: each block sees itself causally, the last one sees everything before it.
inline attention_mask blocks(const std::vector<index_t>& lengths) {
  std::vector<slice> slices;
  index_t begin = 0;
  for (const index_t length : lengths) {
    const index_range block = {begin, begin + length};
    slices.push_back({.queries = block, .keys = block, .upper = 0});
    begin = block.end;
  }
  if (!slices.empty()) {
    const index_range last = slices.back().queries;
    slices.push_back({.queries = last, .keys = {0, last.begin}});
  }
  return attention_mask::from_disjoint_slices(begin, begin, slices);
}

/// Each block sees all of itself and of the blocks before it: neighbours often fill a tile
/// together.
inline attention_mask block_causal(const std::vector<index_t>& lengths) {
  std::vector<slice> slices;
  index_t begin = 0;
  for (const index_t length : lengths) {
    slices.push_back({.queries = {begin, begin + length}, .keys = {0, begin + length}});
    begin += length;
  }
  return attention_mask::from_disjoint_slices(begin, begin, slices);
}

/// Disjoint rectangles and bands: a rectangle is cut in two along either axis until it stays whole;
/// then its diagonals are cut into up to three bands, and each part is kept or hidden.
class random_masks {
 public:
  random_masks(random_source& random, double keep) : random_(random), keep_(keep) {}

  attention_mask operator()(index_t query_tokens, index_t key_tokens, int depth) {
    slices_.clear();
    fill({0, query_tokens}, {0, key_tokens}, depth);
    return attention_mask::from_disjoint_slices(query_tokens, key_tokens, slices_);
  }

 private:
  void fill(const index_range& queries, const index_range& keys, int depth) {
    if (depth > 0 && random_.chance(0.8)) {
      const bool by_query = random_.chance(0.5);
      const index_range& whole = by_query ? queries : keys;
      const index_t at = random_.integer(whole.begin, whole.end);
      const index_range low = {whole.begin, at};
      const index_range high = {at, whole.end};
      fill(by_query ? low : queries, by_query ? keys : low, depth - 1);
      fill(by_query ? high : queries, by_query ? keys : high, depth - 1);
      return;
    }
    index_t lower = no_lower_diagonal;
    for (index_t cuts = random_.integer(0, 2); cuts > 0; --cuts) {
      const index_t first = std::max(keys.begin - queries.end, lower);
      const index_t upper = random_.integer(first, std::max(first, keys.end - queries.begin));
      if (random_.chance(keep_)) slices_.push_back({queries, keys, lower, upper});
      lower = upper + 1;
    }
    if (random_.chance(keep_)) slices_.push_back({queries, keys, lower, no_upper_diagonal});
  }

  random_source& random_;
  double keep_;
  std::vector<slice> slices_;
};

}  // namespace blockattn_test
