// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/token_axis.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <blockattn/mask/slice_overlap.hpp>
#include <span>
#include <string_view>

namespace blockattn::inline BLOCKATTN_ABI {

/// A mask from slices made by hand. Empty slices are dropped. O(slices log slices).
/// Errors: a token count outside [0, max_axis_tokens]; a range outside its axis or reversed; two
/// slices that share a pair.
inline attention_mask mask_from_slices(index_t query_tokens,
                                       index_t key_tokens,
                                       std::span<const slice> slices) {
  detail::require_axis("mask_from_slices", "query_tokens", query_tokens);
  detail::require_axis("mask_from_slices", "key_tokens", key_tokens);
  const auto require_inside = [](std::size_t index, std::string_view name, const index_range& range,
                                 index_t tokens) {
    detail::require(0 <= range.begin && range.begin <= range.end && range.end <= tokens,
                    "mask_from_slices: slices[", index, "].", name, " is [", range.begin, ", ",
                    range.end, "), must lie in [0, ", tokens, ")");
  };
  std::vector<slice> checked;
  checked.reserve(slices.size());
  for (std::size_t i = 0; i < slices.size(); ++i) {
    require_inside(i, "queries", slices[i].queries, query_tokens);
    require_inside(i, "keys", slices[i].keys, key_tokens);
    // Limits beyond the ones that never cut would overflow when added to an index.
    checked.push_back({slices[i].queries, slices[i].keys,
                       std::clamp(slices[i].lower, no_lower_diagonal, no_upper_diagonal),
                       std::clamp(slices[i].upper, no_lower_diagonal, no_upper_diagonal)});
  }
  if (const auto overlap = first_overlap(checked)) {
    detail::fail("mask_from_slices: slices[", overlap->first, "] and slices[", overlap->second,
                 "] overlap at query ", overlap->query, ", key ", overlap->key);
  }
  return attention_mask::from_disjoint_slices(query_tokens, key_tokens, std::move(checked));
}

}  // namespace blockattn::inline BLOCKATTN_ABI
