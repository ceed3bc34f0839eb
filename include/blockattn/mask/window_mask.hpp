// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/layout/token_axis.hpp>
#include <blockattn/mask/attention_mask.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Query i sees the last `window` keys up to its own: i - window < j <= i.
/// Errors: tokens outside [0, max_axis_tokens]; window < 1.
inline attention_mask sliding_window_mask(index_t tokens, index_t window) {
  detail::require_axis("sliding_window_mask", "tokens", tokens);
  detail::require(window >= 1, "sliding_window_mask: window is ", window, ", must be positive");
  const index_t keys = std::min(window, tokens);  // a longer window sees no more
  return attention_mask::from_disjoint_slices(
      tokens, tokens,
      {{.queries = {0, tokens}, .keys = {0, tokens}, .lower = 1 - keys, .upper = 0}});
}

/// Query i sees the first `sinks` keys and the last `window` keys up to its own:
/// j <= i and (j < sinks or i - window < j). The non-rolling mask of StreamingLLM (arXiv
/// 2309.17453) over token indices; its rolling cache renumbers positions, which is another
/// function. Errors: tokens outside [0, max_axis_tokens]; sinks < 0; window < 1.
inline attention_mask sink_window_mask(index_t tokens, index_t sinks, index_t window) {
  detail::require_axis("sink_window_mask", "tokens", tokens);
  detail::require(sinks >= 0, "sink_window_mask: sinks is ", sinks, ", must not be negative");
  detail::require(window >= 1, "sink_window_mask: window is ", window, ", must be positive");
  const index_t keys = std::min(window, tokens);
  return attention_mask::from_disjoint_slices(
      tokens, tokens,
      {{.queries = {0, tokens}, .keys = {0, tokens}, .lower = 1 - keys, .upper = 0},
       {.queries = {0, tokens}, .keys = {0, std::min(sinks, tokens)}, .upper = -keys}});
}

}  // namespace blockattn::inline BLOCKATTN_ABI
