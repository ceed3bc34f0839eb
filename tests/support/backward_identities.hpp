// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "support/finite_differences.hpp"
#include "support/forward_identities.hpp"
#include "support/plain_gradients.hpp"
#include "support/unit_roundoff.hpp"

/// \file
/// Identities that the gradient of attention obeys whatever computes it (SEMANTICS.md, section 5,
/// gradient), each as a check of a backend that has forward and backward.

namespace blockattn_test {

/// Sums of a few dozen products of normal numbers may differ by this between two ways to add them.
template <class T>
inline constexpr double gradient_tolerance = sizeof(T) == 8 ? 5e-14 : 2e-5;

inline plain_options<double> random_plain_options(random_source& random, index_t query_heads) {
  plain_options<double> options;
  options.tiles = {random.integer(1, 40), random.integer(1, 40)};
  if (random.chance(0.5)) options.attention.scale = random.real(-0.5, 0.5);
  if (random.chance(0.3)) options.attention.softcap = random.real(0.5, 3);
  if (random.chance(0.4)) options.sink_logits = random.normal_values<double>(query_heads);
  return options;
}

/// Every gradient is the change of the loss, over random masks, GQA ratios, head dims and options.
template <class Backend>
void check_backward_differences(const Backend& backend, random_source& random) {
  const named_mask mask = random_attention_mask(random, 8);
  plain_sizes sizes;
  sizes.kv_heads = random.integer(1, 2);
  sizes.query_heads = sizes.kv_heads * random.integer(1, 3);
  sizes.head_dim = 8 * random.integer(1, 3);
  sizes.value_dim = 8 * random.integer(1, 3);
  plain_inputs<double> in =
      random_inputs<double>(random, mask.mask.query_tokens(), mask.mask.key_tokens(), sizes);
  plain_options<double> options = random_plain_options(random, sizes.query_heads);
  const plain_loss<double> loss = random_loss(random, in, random.chance(0.5));
  INFO(mask.kind << ", " << in.queries() << " x " << in.keys());
  const plain_gradients<double> g = run_gradients(backend, in, loss, mask.mask, options);
  const auto total = [&] {
    const plain_outputs<double> out = run_forward(backend, in, mask.mask, options);
    double sum = 0;
    for (std::size_t i = 0; i < out.o.size(); ++i) sum += loss.d_o[i] * out.o[i];
    for (std::size_t i = 0; i < loss.d_lse.size(); ++i) {
      if (!std::isinf(out.lse[i])) sum += loss.d_lse[i] * out.lse[i];
    }
    return sum;
  };
  check_differences("q", random, in.q, g.d_q, 5, total);
  check_differences("k", random, in.k, g.d_k, 5, total);
  check_differences("v", random, in.v, g.d_v, 5, total);
  check_differences("sink_logits", random, options.sink_logits, g.d_sink_logits, 2, total);
}

/// Identity 14: with the joint o and lse, the shares of parts of the pairs add up to the whole.
template <class T, class Backend>
void check_gradient_partition(const Backend& backend, random_source& random) {
  const attention_mask mask = random_attention_mask(random, 20).mask;
  const index_t queries = mask.query_tokens();
  const index_t keys = mask.key_tokens();
  const plain_inputs<T> in = random_inputs<T>(random, queries, keys);
  const plain_loss<T> loss = random_loss(random, in, true);
  const plain_outputs<T> joint = run_forward(backend, in, mask);
  const plain_gradients<T> whole = run_backward(backend, in, joint, loss, mask);
  const index_t parts = random.integer(1, 4);
  std::vector<index_t> part_of(static_cast<std::size_t>(queries * keys));
  for (index_t& part : part_of) part = random.integer(0, parts - 1);
  plain_gradients<T> sum = {
      std::vector<T>(in.q.size()), std::vector<T>(in.k.size()), std::vector<T>(in.v.size()), {}};
  const auto add = [](const std::vector<T>& part, std::vector<T>& total) {
    for (std::size_t i = 0; i < part.size(); ++i) total[i] += part[i];
  };
  for (index_t p = 0; p < parts; ++p) {
    const attention_mask share = custom_mask(queries, keys, [&](index_t i, index_t j) {
      return part_of[static_cast<std::size_t>(i * keys + j)] == p && mask.visible(i, j);
    });
    const plain_gradients<T> g = run_backward(backend, in, joint, loss, share);
    add(g.d_q, sum.d_q);
    add(g.d_k, sum.d_k);
    add(g.d_v, sum.d_v);
  }
  CAPTURE(queries, keys, parts);
  CHECK(largest_distance(sum.d_q, whole.d_q) <= gradient_tolerance<T>);
  CHECK(largest_distance(sum.d_k, whole.d_k) <= gradient_tolerance<T>);
  CHECK(largest_distance(sum.d_v, whole.d_v) <= gradient_tolerance<T>);
}

/// Hidden pairs carry nothing: a new d_o of one context block changes the bits of no other row's
/// d_q and of no other block's d_k and d_v.
template <class T, class Backend>
void check_gradient_independence(const Backend& backend, random_source& random) {
  std::vector<index_t> lengths = random_sequence(random);
  lengths.insert(lengths.begin(), random.integer(1, 20));
  lengths.push_back(random.integer(1, 20));
  const block_layout layout = layout_of(lengths);
  const attention_mask mask = block_attention_mask(layout);
  const index_t n = layout.tokens();
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const plain_sizes& s = in.sizes;
  plain_loss<T> loss = random_loss(random, in, false);
  const plain_gradients<T> before = run_gradients(backend, in, loss, mask);
  const index_range block =
      layout.block(layout.block_of(random.integer(0, layout.block(layout.blocks() - 1).begin - 1)));
  const index_t width = s.query_heads * s.value_dim;
  const std::vector<T> other = random.normal_values<T>(block.size() * width);
  std::copy(other.begin(), other.end(), loss.d_o.begin() + block.begin * width);
  const plain_gradients<T> after = run_gradients(backend, in, loss, mask);
  for (index_t i = 0; i < n; ++i) {
    CAPTURE(n, i, block.begin, block.end);
    const auto same = [&](const std::vector<T>& a, const std::vector<T>& b, index_t row) {
      return std::memcmp(a.data() + i * row, b.data() + i * row,
                         static_cast<std::size_t>(row) * sizeof(T)) == 0;
    };
    const bool outside = !block.contains(i);
    // The first token of a block sees one key: whatever its d_o, d_q is 0 up to rounding.
    if (outside) CHECK(same(before.d_q, after.d_q, s.query_heads * s.head_dim));
    if (outside) CHECK(same(before.d_k, after.d_k, s.kv_heads * s.head_dim));
    CHECK(same(before.d_v, after.d_v, s.kv_heads * s.value_dim) == outside);
  }
}

/// Identity 1: a context block of one token has o = v whatever its query and key are: d_q of its
/// row is exactly 0, and all of its d_o goes to its value when no final block reads it.
template <class T, class Backend>
void check_gradient_unit_blocks(const Backend& backend, random_source& random) {
  const index_t n = random.integer(1, 50);
  std::vector<index_t> lengths(static_cast<std::size_t>(n), 1);
  lengths.push_back(0);
  const plain_inputs<T> in = random_inputs<T>(random, n, n, {.query_heads = 3, .kv_heads = 1});
  const plain_loss<T> loss = random_loss(random, in, false);
  const plain_gradients<T> g =
      run_gradients(backend, in, loss, block_attention_mask(layout_of(lengths)));
  for (const T& value : g.d_q) CHECK(load_scalar(value) == 0);
  for (const T& value : g.d_k) CHECK(load_scalar(value) == 0);
  const index_t dim = in.sizes.value_dim;
  for (index_t i = 0; i < n; ++i) {
    for (index_t t = 0; t < dim; ++t) {
      double sum = 0;
      for (index_t h = 0; h < 3; ++h) {
        sum += static_cast<double>(
            load_scalar(loss.d_o[static_cast<std::size_t>((3 * i + h) * dim + t)]));
      }
      const auto value =
          static_cast<double>(load_scalar(g.d_v[static_cast<std::size_t>(i * dim + t)]));
      CHECK(std::abs(value - sum) <= gradient_tolerance<T> + unit_roundoff<T>() * std::abs(sum));
    }
  }
}

/// Identity 12: the gradient of a kv head is the sum of those of its repetitions.
template <class T, class Backend>
void check_gradient_repeated_heads(const Backend& backend, random_source& random) {
  const attention_mask mask = random_attention_mask(random, 20).mask;
  const plain_sizes sizes = {.query_heads = 6, .kv_heads = random.chance(0.5) ? 1 : 3};
  const index_t group = sizes.query_heads / sizes.kv_heads;
  const plain_inputs<T> in =
      random_inputs<T>(random, mask.query_tokens(), mask.key_tokens(), sizes);
  const plain_loss<T> loss = random_loss(random, in, false);
  plain_inputs<T> repeated = in;
  repeated.sizes.kv_heads = sizes.query_heads;
  std::vector<index_t> head_rows;  // of the (tokens * kv_heads, dim) matrices
  for (index_t j = 0; j < in.keys(); ++j) {
    for (index_t h = 0; h < sizes.query_heads; ++h) {
      head_rows.push_back(j * sizes.kv_heads + h / group);
    }
  }
  repeated.k = picked_rows(in.k, sizes.head_dim, head_rows);
  repeated.v = picked_rows(in.v, sizes.value_dim, head_rows);
  const plain_gradients<T> grouped = run_gradients(backend, in, loss, mask);
  const plain_gradients<T> apart = run_gradients(backend, repeated, loss, mask);
  const auto summed = [&](const std::vector<T>& parts, index_t dim) {
    std::vector<T> sum(parts.size() / static_cast<std::size_t>(group));
    for (std::size_t row = 0; row < head_rows.size(); ++row) {
      const index_t to = static_cast<index_t>(row) / group;
      for (index_t t = 0; t < dim; ++t) {
        sum[static_cast<std::size_t>(to * dim + t)] +=
            parts[row * static_cast<std::size_t>(dim) + static_cast<std::size_t>(t)];
      }
    }
    return sum;
  };
  CHECK(largest_distance(apart.d_q, grouped.d_q) <= gradient_tolerance<T>);
  CHECK(largest_distance(summed(apart.d_k, sizes.head_dim), grouped.d_k) <= gradient_tolerance<T>);
  CHECK(largest_distance(summed(apart.d_v, sizes.value_dim), grouped.d_v) <= gradient_tolerance<T>);
}

/// Shifting every key by one vector c adds q.c to all scores of a row: o stays, lse grows by
/// scale q.c, hence sum_j d_k_j = scale sum_i d_lse_i q_i. Shifting every value by c adds c to
/// every row that sees something: sum_j d_v_j = sum_i d_o_i over these.
template <class T, class Backend>
void check_gradient_sums(const Backend& backend, random_source& random) {
  const attention_mask mask = random_attention_mask(random, 20).mask;
  const plain_sizes sizes = {.query_heads = 3, .kv_heads = 1};
  const plain_inputs<T> in =
      random_inputs<T>(random, mask.query_tokens(), mask.key_tokens(), sizes);
  const plain_loss<T> loss = random_loss(random, in, true);
  const plain_outputs<T> out = run_forward(backend, in, mask);
  const plain_gradients<T> g = run_backward(backend, in, out, loss, mask);
  std::vector<double> keys(static_cast<std::size_t>(sizes.head_dim));
  std::vector<double> values(static_cast<std::size_t>(sizes.value_dim));
  const auto add = [](std::vector<double>& sum, const T* row, double factor) {
    for (double& value : sum) value += factor * static_cast<double>(*row++);
  };
  const double scale = 1 / std::sqrt(static_cast<double>(sizes.head_dim));
  for (index_t j = 0; j < in.keys(); ++j) {
    add(keys, g.d_k.data() + j * sizes.head_dim, 1);
    add(values, g.d_v.data() + j * sizes.value_dim, 1);
  }
  for (std::size_t row = 0; row < out.lse.size(); ++row) {
    if (std::isinf(out.lse[row])) continue;
    const auto at = static_cast<index_t>(row);
    add(keys, in.q.data() + at * sizes.head_dim, -scale * static_cast<double>(loss.d_lse[row]));
    add(values, loss.d_o.data() + at * sizes.value_dim, -1);
  }
  for (const double rest : keys) CHECK(std::abs(rest) <= 10 * gradient_tolerance<T>);
  for (const double rest : values) CHECK(std::abs(rest) <= 10 * gradient_tolerance<T>);
}

/// Identity 18: when only the final block carries loss, the gradients of cached context keys and
/// values are those of the whole masked call.
template <class T, class Backend>
void check_cached_gradient(const Backend& backend, random_source& random) {
  std::vector<index_t> lengths = random_sequence(random);
  lengths.push_back(random.integer(1, 20));
  const block_layout layout = layout_of(lengths);
  const index_t n = layout.tokens();
  const index_range last = layout.block(layout.blocks() - 1);
  const plain_inputs<T> in = random_inputs<T>(random, n, n);
  const index_t width = in.sizes.query_heads * in.sizes.value_dim;
  plain_loss<T> loss = random_loss(random, in, false);
  std::fill_n(loss.d_o.begin(), last.begin * width, T(0));
  const plain_gradients<T> whole = run_gradients(backend, in, loss, block_attention_mask(layout));
  const plain_inputs<T> cached = in.with_queries(indices(last));
  const plain_loss<T> own = {{loss.d_o.begin() + last.begin * width, loss.d_o.end()}, {}};
  const plain_gradients<T> g = run_gradients(backend, cached, own, causal_mask(last.size(), n));
  CHECK(largest_distance(g.d_k, whole.d_k) <= gradient_tolerance<T>);
  CHECK(largest_distance(g.d_v, whole.d_v) <= gradient_tolerance<T>);
  CHECK(largest_distance(g.d_q, picked_rows(whole.d_q, in.sizes.query_heads * in.sizes.head_dim,
                                            indices(last))) <= gradient_tolerance<T>);
}

}  // namespace blockattn_test
