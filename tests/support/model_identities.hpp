// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/layout/positions.hpp>

#include "support/forward_identities.hpp"
#include "support/toy_model.hpp"

/// \file
/// Identities that involve positions and span layers (SEMANTICS.md, section 5, numbers 3 to 6).

namespace blockattn_test {

inline rope_options random_rope(random_source& random, index_t head_dim) {
  rope_options options = {.head_dim = head_dim};
  if (random.chance(0.5)) options.rotary_dim = head_dim / 2;
  if (random.chance(0.5)) options.pairing = rope_pairing::interleaved;
  if (random.chance(0.3)) options.attention_factor = 1.25;
  return options;
}

/// Identity 3: scores depend on differences of positions only: all tokens moved together, forwards,
/// backwards or by a fraction, give the same rows.
template <class T, class Backend>
void check_common_shift(const Backend& backend, random_source& random) {
  const block_layout layout = layout_of(random_sequence(random));
  const index_t n = layout.tokens();
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_sizes& s = in.sizes;
  const rope rotation(random_rope(random, s.head_dim));
  const double shift = random.real(-300, 300);
  std::vector<double> positions = global_positions(layout);
  const auto rotated = [&] {
    plain_inputs<T> result = in;
    rotate(rotation, token_major(result.q.data(), n, s.query_heads, s.head_dim), positions);
    rotate(rotation, token_major(result.k.data(), n, s.kv_heads, s.head_dim), positions);
    return result;
  };
  const attention_mask mask = block_attention_mask(layout);
  const plain_outputs<T> here = run_forward(backend, rotated(), mask);
  for (double& position : positions) position += shift;
  const plain_outputs<T> there = run_forward(backend, rotated(), mask);
  CAPTURE(n, shift);
  CHECK(row_distance(here, there) <= identity_tolerance<T>);
}

/// Identities 4 and 6 through several layers: context blocks encoded alone at positions 0, 1, ...,
/// their keys moved to the block's place, then the final block over the cache: the rows of one
/// masked prefill at global positions. The cache serves the blocks in another order too.
template <class T, class Backend>
void check_cached_prefill(const Backend& backend, random_source& random) {
  std::vector<index_t> lengths = random_sequence(random, 20);
  lengths.push_back(random.integer(1, 10));
  const rope rotation(random_rope(random, toy_model<T>::sizes.head_dim));
  const toy_model<T> model(random, rotation, 3);
  const auto tokens_of = [&](index_t tokens) {
    return random.normal_values<T>(tokens * toy_model<T>::width);
  };
  const auto blocks = lengths.size();
  std::vector<std::vector<T>> x;
  for (const index_t length : lengths) x.push_back(tokens_of(length));

  // Each context block once, alone.
  std::vector<typename toy_model<T>::cache> cached(blocks);
  std::vector<std::vector<T>> encoded;
  for (std::size_t b = 0; b + 1 < blocks; ++b) {
    const block_layout alone = layout_of({lengths[b]});
    encoded.push_back(
        model.run(backend, x[b], global_positions(alone), causal_mask(lengths[b]), cached[b]));
  }
  std::vector<std::size_t> order(blocks - 1);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (const bool shuffled : {false, true}) {
    if (shuffled) std::shuffle(order.begin(), order.end(), random.engine());
    std::vector<index_t> placed;
    std::vector<T> all;
    typename toy_model<T>::cache past;
    index_t start = 0;
    for (const std::size_t b : order) {
      placed.push_back(lengths[b]);
      all.insert(all.end(), x[b].begin(), x[b].end());
      model.append_moved(cached[b], static_cast<double>(start), past);
      start += lengths[b];
    }
    placed.push_back(lengths.back());
    all.insert(all.end(), x.back().begin(), x.back().end());
    const block_layout layout = layout_of(placed);
    const std::vector<double> positions = global_positions(layout);
    typename toy_model<T>::cache unused;
    const std::vector<T> prefill =
        model.run(backend, all, positions, block_attention_mask(layout), unused);
    const std::vector<T> answer = model.run(
        backend, x.back(), std::vector<double>(positions.begin() + start, positions.end()),
        causal_mask(lengths.back(), start + lengths.back()), past);
    std::vector<T> joined;
    for (const std::size_t b : order) {
      joined.insert(joined.end(), encoded[b].begin(), encoded[b].end());
    }
    joined.insert(joined.end(), answer.begin(), answer.end());
    double largest = joined.size() == prefill.size() ? 0 : std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < joined.size(); ++i) {
      largest = std::max(largest, distance(joined[i], prefill[i]));
    }
    CAPTURE(shuffled, start, lengths.back());
    CHECK(largest <= 5 * identity_tolerance<T>);  // three layers, each amplifies
  }
}

/// Identity 5 through several layers: whoever does not see a token never learns of it.
template <class T, class Backend>
void check_layered_independence(const Backend& backend, random_source& random) {
  std::vector<index_t> lengths = {random.integer(1, 20), random.integer(1, 20),
                                  random.integer(1, 20)};
  const block_layout layout = layout_of(lengths);
  const rope rotation(random_rope(random, toy_model<T>::sizes.head_dim));
  const toy_model<T> model(random, rotation, 3);
  constexpr index_t width = toy_model<T>::width;
  const std::vector<T> before = random.normal_values<T>(layout.tokens() * width);
  std::vector<T> after = before;
  const index_t token = random.integer(0, layout.block(2).begin - 1);
  const index_range own = layout.block(layout.block_of(token));
  for (index_t t = 0; t < width; ++t) after[static_cast<std::size_t>(token * width + t)] += T(1);
  const auto run = [&](const std::vector<T>& x) {
    typename toy_model<T>::cache unused;
    return model.run(backend, x, global_positions(layout), block_attention_mask(layout), unused);
  };
  const std::vector<T> a = run(before);
  const std::vector<T> b = run(after);
  for (index_t i = 0; i < layout.tokens(); ++i) {
    const bool reached = layout.block(2).contains(i) || (own.contains(i) && i >= token);
    CAPTURE(token, i);
    CHECK((std::memcmp(a.data() + i * width, b.data() + i * width,
                       static_cast<std::size_t>(width) * sizeof(T)) == 0) == !reached);
  }
}

}  // namespace blockattn_test
