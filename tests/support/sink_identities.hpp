// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/forward_identities.hpp"

/// \file
/// Identities of sink logits and sink tokens (SEMANTICS.md, section 5, number 7).

namespace blockattn_test {

/// A sink logit is a key of that score whose value is 0; -inf is no sink, bit for bit; r equal
/// sinks are one of logit + log r; a row that sees nothing ends with lse = its logit and o = 0.
template <class T, class Backend>
void check_sink_logits(const Backend& backend, random_source& random) {
  using C = accumulator_t<T>;
  const attention_mask mask = random_attention_mask(random, 20).mask;
  const index_t queries = mask.query_tokens();
  const index_t keys = mask.key_tokens();
  const plain_inputs<T> in = random_inputs<T>(random, queries, keys);
  const plain_sizes& s = in.sizes;
  CAPTURE(queries, keys);
  plain_options<T> with_sinks;
  for (index_t h = 0; h < s.query_heads; ++h) {
    with_sinks.sink_logits.push_back(static_cast<C>(2 * random.normal()));
  }
  const plain_outputs<T> plain = run_forward(backend, in, mask);
  const plain_outputs<T> sunk = run_forward(backend, in, mask, with_sinks);
  for (index_t i = 0; i < queries; ++i) {
    for (index_t h = 0; h < s.query_heads; ++h) {
      const double logit = with_sinks.sink_logits[static_cast<std::size_t>(h)];
      const double lse = plain.lse_row(i)[h];
      const double kept = 1 / (1 + std::exp(logit - lse));
      const double joint = std::isinf(lse) ? logit : lse + std::log1p(std::exp(logit - lse));
      CAPTURE(i, h, logit, lse);
      CHECK(distance(sunk.lse_row(i)[h], joint) <= identity_tolerance<T>);
      for (index_t t = h * s.value_dim; t < (h + 1) * s.value_dim; ++t) {
        CHECK(distance(sunk.o_row(i)[t], kept * static_cast<double>(plain.o_row(i)[t])) <=
              identity_tolerance<T>);
      }
    }
  }

  // r more keys that every row sees, with k = 0 (score 0, softcap or not) and v = 0.
  const index_t r = random.integer(1, 3);
  plain_inputs<T> more = in;
  more.k.resize(more.k.size() + static_cast<std::size_t>(r * s.kv_heads * s.head_dim), T(0));
  more.v.resize(more.v.size() + static_cast<std::size_t>(r * s.kv_heads * s.value_dim), T(0));
  std::vector<slice> slices = mask.slices();
  slices.push_back({.queries = {0, queries}, .keys = {keys, keys + r}});
  const plain_outputs<T> as_keys =
      run_forward(backend, more, attention_mask::from_disjoint_slices(queries, keys + r, slices));
  plain_options<T> log_r;
  log_r.sink_logits.assign(static_cast<std::size_t>(s.query_heads), std::log(static_cast<C>(r)));
  CHECK(row_distance(run_forward(backend, in, mask, log_r), as_keys) <= identity_tolerance<T>);

  plain_options<T> absent;
  absent.sink_logits.assign(static_cast<std::size_t>(s.query_heads),
                            -std::numeric_limits<C>::infinity());
  CHECK(same_bits(run_forward(backend, in, mask, absent), plain));
}

/// Sink tokens that belong to their block are a longer block; sinks hidden from the final block are
/// columns that only its rows lose (PCW, arXiv 2212.10947).
template <class T, class Backend>
void check_sink_tokens(const Backend& backend, random_source& random) {
  const std::vector<index_t> lengths = random_sequence(random);
  const index_t r = random.integer(1, 4);
  std::vector<index_t> longer = lengths;
  for (index_t& length : longer) length += r;
  const block_layout layout = with_sink_tokens(layout_of(lengths), {.tokens_per_block = r});
  const index_t n = layout.tokens();
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_outputs<T> seen = run_forward(backend, in, block_attention_mask(layout));
  CAPTURE(n, r);
  CHECK(same_bits(seen, run_forward(backend, in, block_attention_mask(layout_of(longer)))));

  const plain_outputs<T> hidden = run_forward(
      backend, in, block_attention_mask(layout, {.sink_visibility = sink_visibility::own}));
  const index_range final_tokens = layout.block(layout.blocks() - 1);
  for (index_t i = 0; i < final_tokens.begin; ++i) {
    CHECK(row_distance(hidden, i, seen, i) <= identity_tolerance<T>);
  }
  std::vector<index_t> kept;
  for (index_t j = 0; j < n; ++j) {
    if (final_tokens.contains(j) || !layout.is_sink(j)) kept.push_back(j);
  }
  const plain_outputs<T> deleted =
      run_forward(backend, in.with_queries(indices(final_tokens)).with_keys(kept),
                  causal_mask(final_tokens.size(), std::ssize(kept)));
  for (index_t i = 0; i < final_tokens.size(); ++i) {
    CHECK(row_distance(deleted, i, hidden, final_tokens.begin + i) <= identity_tolerance<T>);
  }
}

}  // namespace blockattn_test
