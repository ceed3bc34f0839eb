// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/token_axis.hpp>
#include <blockattn/mask/attention_mask.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Every query sees every key. Errors: a token count outside [0, max_axis_tokens].
inline attention_mask full_mask(index_t query_tokens, index_t key_tokens) {
  detail::require_axis("full_mask", "query_tokens", query_tokens);
  detail::require_axis("full_mask", "key_tokens", key_tokens);
  return attention_mask::from_disjoint_slices(
      query_tokens, key_tokens, {{.queries = {0, query_tokens}, .keys = {0, key_tokens}}});
}

/// Causal, aligned at the bottom right: the queries are the last tokens of the key axis, so query i
/// sees the keys j <= i + key_tokens - query_tokens. With more queries than keys the first ones see
/// nothing. Errors: a token count outside [0, max_axis_tokens].
inline attention_mask causal_mask(index_t query_tokens, index_t key_tokens) {
  detail::require_axis("causal_mask", "query_tokens", query_tokens);
  detail::require_axis("causal_mask", "key_tokens", key_tokens);
  return attention_mask::from_disjoint_slices(query_tokens, key_tokens,
                                              {{.queries = {0, query_tokens},
                                                .keys = {0, key_tokens},
                                                .upper = key_tokens - query_tokens}});
}

/// Causal over one axis: query i sees the keys j <= i. Errors: tokens outside [0, max_axis_tokens].
inline attention_mask causal_mask(index_t tokens) { return causal_mask(tokens, tokens); }

}  // namespace blockattn::inline BLOCKATTN_ABI
