// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_arguments.hpp>
#include <blockattn/mask/dense_mask.hpp>
#include <numeric>

#include "support/plain_tensors.hpp"

/// \file
/// Identities that attention obeys whatever computes it (SEMANTICS.md, section 5, forward), each as
/// a check of a backend: forward(forward_arguments, head_masks, attention_options) const.

namespace blockattn_test {

/// Lengths of one sequence with an interior of up to five ragged blocks and a final block.
inline std::vector<index_t> random_sequence(random_source& random, index_t max_length = 30) {
  std::vector<index_t> lengths(static_cast<std::size_t>(random.integer(1, 6)));
  for (index_t& length : lengths) length = random.chance(0.15) ? 0 : random.integer(1, max_length);
  return lengths;
}

/// Identity 1 and 11: everything that says "causal" in its own words gives the bits of causal.
template <class T, class Backend>
void check_causal_limits(const Backend& backend, random_source& random) {
  const index_t n = random.integer(1, 70);
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_outputs<T> causal = run_forward(backend, in, causal_mask(n));
  const std::vector<index_t> all = indices({0, n});
  const index_t cut = random.integer(0, n);
  const block_layout two = layout_of({cut, n - cut});
  const std::vector<block_visibility> lower = {block_visibility::causal, block_visibility::hidden,
                                               block_visibility::full, block_visibility::causal};
  const named_mask limits[] = {
      {"one block", block_attention_mask(layout_of({n}))},
      {"empty blocks before the final one", block_attention_mask(layout_of({0, 0, n}))},
      {"prefix alone", shared_prefix_mask(layout_of({n}))},
      {"prefix and final block", shared_prefix_mask(two)},
      {"window as long as the axis", sliding_window_mask(n, n)},
      {"one document", packed_documents_mask(layout_of({n}), document_attention::causal)},
      {"every row recomputed", gather_queries(causal_mask(n), all)},
      {"block-causal matrix", block_visibility_mask(two, lower)},
      {"predicate", custom_mask(n, n, [](index_t i, index_t j) { return j <= i; })},
  };
  for (const named_mask& limit : limits) {
    CAPTURE(n, cut, limit.kind);
    CHECK(same_bits(run_forward(backend, in, limit.mask), causal));
  }
}

/// Identity 1: a context block of one token returns its value, with lse = its own score.
template <class T, class Backend>
void check_unit_blocks(const Backend& backend, random_source& random) {
  const index_t context = random.integer(1, 50);
  const index_t n = context + random.integer(0, 5);
  std::vector<index_t> lengths(static_cast<std::size_t>(context), 1);
  lengths.push_back(n - context);
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_outputs<T> out = run_forward(backend, in, block_attention_mask(layout_of(lengths)));
  const plain_sizes& s = in.sizes;
  for (index_t i = 0; i < context; ++i) {
    for (index_t h = 0; h < s.query_heads; ++h) {
      const index_t kv_head = h / (s.query_heads / s.kv_heads);
      CAPTURE(i, h);
      const T* const value = in.v.data() + (i * s.kv_heads + kv_head) * s.value_dim;
      CHECK(std::memcmp(out.o_row(i) + h * s.value_dim, value,
                        static_cast<std::size_t>(s.value_dim) * sizeof(T)) == 0);
      double score = 0;
      for (index_t t = 0; t < s.head_dim; ++t) {
        score += static_cast<double>(load_scalar(
                     in.q[static_cast<std::size_t>((i * s.query_heads + h) * s.head_dim + t)])) *
                 static_cast<double>(load_scalar(
                     in.k[static_cast<std::size_t>((i * s.kv_heads + kv_head) * s.head_dim + t)]));
      }
      score /= std::sqrt(static_cast<double>(s.head_dim));
      const double tolerance = format_of<T> == storage_format::fp64 ? identity_tolerance<T> : 1e-5;
      CHECK(distance(static_cast<double>(out.lse_row(i)[h]), score) <= tolerance);
    }
  }
}

/// Identity 2: the visible pairs dealt out to several masks, by key or pair by pair; the states
/// merge into the joint result in any order and any tree, sink logits counted once at the end.
template <class T, class Backend>
void check_partition(const Backend& backend, random_source& random) {
  const attention_mask mask = random_attention_mask(random, 20).mask;
  const index_t queries = mask.query_tokens();
  const index_t keys = mask.key_tokens();
  const plain_inputs<T> in = random_inputs<T>(random, queries, keys);
  plain_options<T> with_sinks;
  if (random.chance(0.5)) with_sinks.sink_logits = {0, T(-3), T(2.5), T(1)};

  const index_t parts = random.integer(1, 5);
  const bool by_pair = random.chance(0.5);
  std::vector<index_t> part_of(static_cast<std::size_t>(by_pair ? queries * keys : keys));
  for (index_t& part : part_of) part = random.integer(0, parts - 1);
  std::vector<plain_outputs<T>> states;
  for (index_t p = 0; p < parts; ++p) {
    states.push_back(run_forward(backend, in, custom_mask(queries, keys, [&](index_t i, index_t j) {
                                   const index_t at = by_pair ? i * keys + j : j;
                                   return part_of[static_cast<std::size_t>(at)] == p &&
                                          mask.visible(i, j);
                                 })));
  }
  std::shuffle(states.begin(), states.end(), random.engine());

  const auto merged = [&](const std::vector<const plain_outputs<T>*>& some,
                          const std::vector<accumulator_t<T>>& sinks) {
    std::vector<partial_state<T>> list;
    for (const auto* state : some) {
      list.push_back({.o = state->o_view(), .lse = state->lse_heads()});
    }
    plain_outputs<T> out(queries, in.sizes);
    backend.merge(merge_arguments<T>{
        .states = list, .o = out.o_view(), .lse = out.lse_heads(), .sink_logits = sinks});
    return out;
  };
  std::vector<const plain_outputs<T>*> all;
  for (const auto& state : states) all.push_back(&state);
  const plain_outputs<T> joint = run_forward(backend, in, mask, with_sinks);
  CAPTURE(queries, keys, parts, by_pair);
  CHECK(row_distance(merged(all, with_sinks.sink_logits), joint) <= identity_tolerance<T>);

  plain_outputs<T> chain = states[0];
  for (std::size_t p = 1; p < states.size(); ++p) chain = merged({&states[p], &chain}, {});
  chain = merged({&chain}, with_sinks.sink_logits);
  CHECK(row_distance(chain, joint) <= identity_tolerance<T>);

  const plain_outputs<T> nothing =
      run_forward(backend, in, attention_mask::from_disjoint_slices(queries, keys, {}));
  CHECK(same_bits(merged({&states[0]}, {}), states[0]));
  CHECK(same_bits(merged({&nothing, &states[0]}, {}), states[0]));
  CHECK(same_bits(merged({&nothing, &nothing}, {}), nothing));
}

/// Identity 5: a token of a context block reaches the final block and its own later rows; every
/// other row keeps its bits.
template <class T, class Backend>
void check_independence(const Backend& backend, random_source& random) {
  std::vector<index_t> lengths = random_sequence(random);
  lengths.insert(lengths.begin(), random.integer(1, 20));
  lengths.push_back(random.integer(1, 20));
  const block_layout layout = layout_of(lengths);
  const attention_mask mask = block_attention_mask(layout);
  const index_t n = layout.tokens();
  const plain_inputs<T> before = random_inputs<T>(random, n, n);
  const index_range final_tokens = layout.block(layout.blocks() - 1);
  const index_t token = random.integer(0, final_tokens.begin - 1);
  const index_range own = layout.block(layout.block_of(token));
  plain_inputs<T> after = before;
  const auto perturb = [&](std::vector<T>& matrix, index_t width) {
    const std::vector<T> row = random.normal_values<T>(width);
    std::copy(row.begin(), row.end(), matrix.begin() + token * width);
  };
  perturb(after.q, before.sizes.query_heads * before.sizes.head_dim);
  perturb(after.k, before.sizes.kv_heads * before.sizes.head_dim);
  perturb(after.v, before.sizes.kv_heads * before.sizes.value_dim);
  const plain_outputs<T> a = run_forward(backend, before, mask);
  const plain_outputs<T> b = run_forward(backend, after, mask);
  for (index_t i = 0; i < n; ++i) {
    const bool reached = final_tokens.contains(i) || (own.contains(i) && i >= token);
    CAPTURE(n, token, i);
    CHECK(same_bits(a, i, b, i) == !reached);
  }
}

/// Identity 6: without positions the final block does not mind the order of the context blocks, and
/// each context block computes the same wherever it stands.
template <class T, class Backend>
void check_permutation(const Backend& backend, random_source& random) {
  std::vector<index_t> lengths = random_sequence(random);
  const block_layout layout = layout_of(lengths);
  const index_t n = layout.tokens();
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_outputs<T> out = run_forward(backend, in, block_attention_mask(layout));

  std::vector<index_t> order = indices({0, layout.blocks()});
  std::shuffle(order.begin(), order.end() - 1, random.engine());
  std::vector<index_t> moved_lengths;
  std::vector<index_t> tokens;
  for (const index_t b : order) {
    moved_lengths.push_back(layout.block(b).size());
    for (const index_t token : indices(layout.block(b))) tokens.push_back(token);
  }
  const plain_outputs<T> moved = run_forward(backend, in.with_queries(tokens).with_keys(tokens),
                                             block_attention_mask(layout_of(moved_lengths)));
  for (index_t i = 0; i < n; ++i) {
    CAPTURE(n, i);
    CHECK(row_distance(moved, i, out, tokens[static_cast<std::size_t>(i)]) <=
          identity_tolerance<T>);
  }
}

/// Identity 12: grouped heads are repeated heads, copied or read twice through a stride of 0.
template <class T, class Backend>
void check_repeated_heads(const Backend& backend, random_source& random) {
  const attention_mask mask = random_attention_mask(random, 20).mask;
  const plain_sizes sizes = {.query_heads = 6, .kv_heads = random.chance(0.5) ? 1 : 3};
  const plain_inputs<T> in =
      random_inputs<T>(random, mask.query_tokens(), mask.key_tokens(), sizes);
  const plain_outputs<T> grouped = run_forward(backend, in, mask);

  plain_inputs<T> repeated = in;
  repeated.sizes.kv_heads = sizes.query_heads;
  std::vector<index_t> head_rows;  // of the (tokens * kv_heads, dim) matrices
  for (index_t j = 0; j < in.keys(); ++j) {
    for (index_t h = 0; h < sizes.query_heads; ++h) {
      head_rows.push_back(j * sizes.kv_heads + h / (sizes.query_heads / sizes.kv_heads));
    }
  }
  repeated.k = picked_rows(in.k, sizes.head_dim, head_rows);
  repeated.v = picked_rows(in.v, sizes.value_dim, head_rows);
  CHECK(same_bits(run_forward(backend, repeated, mask), grouped));

  if (sizes.kv_heads != 1) return;
  plain_outputs<T> strided(in.queries(), sizes);
  backend.forward(
      forward_arguments<T>{
          .q = token_major(in.q.data(), in.queries(), sizes.query_heads, sizes.head_dim),
          .k = {in.k.data(), in.keys(), sizes.query_heads, sizes.head_dim, sizes.head_dim, 0, true},
          .v = {in.v.data(), in.keys(), sizes.query_heads, sizes.value_dim, sizes.value_dim, 0,
                true},
          .o = strided.o_view(),
          .lse = strided.lse_heads()},
      head_masks(mask, plain_options<T>{}.tiles), {});
  CHECK(same_bits(strided, grouped));
}

}  // namespace blockattn_test
