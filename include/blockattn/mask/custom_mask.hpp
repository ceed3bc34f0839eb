// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/token_axis.hpp>
#include <blockattn/mask/attention_mask.hpp>
#include <blockattn/mask/row_run_merger.hpp>
#include <concepts>

namespace blockattn::inline BLOCKATTN_ABI {

/// Any mask at all: query i sees key j when `visible(i, j)` is true. The predicate is called once
/// per pair, row by row, here and never again: the mask holds its runs, merged into rectangles and
/// bands (causal, windows and document blocks come out as the slices one would write by hand).
///
/// O(query_tokens * key_tokens) calls; memory O(runs per row + slices), at worst one slice for
/// every second pair. Errors: a token count outside [0, max_axis_tokens].
template <std::predicate<index_t, index_t> Predicate>
attention_mask custom_mask(index_t query_tokens, index_t key_tokens, Predicate visible) {
  detail::require_axis("custom_mask", "query_tokens", query_tokens);
  detail::require_axis("custom_mask", "key_tokens", key_tokens);
  detail::row_run_merger merger;
  std::vector<index_range> runs;
  for (index_t query = 0; query < query_tokens; ++query) {
    runs.clear();
    for (index_t key = 0; key < key_tokens; ++key) {
      if (!visible(query, key)) continue;
      if (!runs.empty() && runs.back().end == key) {
        ++runs.back().end;
      } else {
        runs.push_back({key, key + 1});
      }
    }
    merger.add_row(query, runs);
  }
  return attention_mask::from_disjoint_slices(query_tokens, key_tokens, merger.take());
}

}  // namespace blockattn::inline BLOCKATTN_ABI
