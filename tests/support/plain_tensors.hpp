// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "support/attention_case.hpp"
#include "support/catch.hpp"

namespace blockattn_test {

/// The (rows, width) matrix of the picked rows of one.
template <class T>
std::vector<T> picked_rows(const std::vector<T>& matrix,
                           index_t width,
                           const std::vector<index_t>& rows) {
  std::vector<T> picked;
  for (const index_t row : rows) {
    picked.insert(picked.end(), matrix.begin() + row * width, matrix.begin() + (row + 1) * width);
  }
  return picked;
}

/// begin, begin + 1, ..., end - 1.
inline std::vector<index_t> indices(const index_range& range) {
  std::vector<index_t> all;
  for (index_t i = range.begin; i < range.end; ++i) all.push_back(i);
  return all;
}

struct plain_sizes {
  index_t query_heads = 4;
  index_t kv_heads = 2;
  index_t head_dim = 24;
  index_t value_dim = 40;
};

/// Inputs of a forward call in contiguous token-major vectors, easy to cut and join.
template <class T>
struct plain_inputs {
  plain_sizes sizes;
  std::vector<T> q, k, v;

  index_t queries() const { return std::ssize(q) / (sizes.query_heads * sizes.head_dim); }
  index_t keys() const { return std::ssize(k) / (sizes.kv_heads * sizes.head_dim); }

  plain_inputs with_queries(const std::vector<index_t>& rows) const {
    return {sizes, picked_rows(q, sizes.query_heads * sizes.head_dim, rows), k, v};
  }
  plain_inputs with_keys(const std::vector<index_t>& rows) const {
    return {sizes, q, picked_rows(k, sizes.kv_heads * sizes.head_dim, rows),
            picked_rows(v, sizes.kv_heads * sizes.value_dim, rows)};
  }
};

template <class T>
plain_inputs<T> random_inputs(random_source& random,
                              index_t queries,
                              index_t keys,
                              const plain_sizes& sizes = {}) {
  return {sizes, random.normal_values<T>(queries * sizes.query_heads * sizes.head_dim),
          random.normal_values<T>(keys * sizes.kv_heads * sizes.head_dim),
          random.normal_values<T>(keys * sizes.kv_heads * sizes.value_dim)};
}

/// Outputs, token-major. Elements that nobody wrote are NaN.
template <class T>
struct plain_outputs {
  using C = accumulator_t<T>;

  index_t heads;
  index_t value_dim;
  std::vector<T> o;    ///< (tokens, heads, value_dim)
  std::vector<C> lse;  ///< (tokens, heads)

  plain_outputs(index_t tokens, const plain_sizes& sizes)
      : heads(sizes.query_heads),
        value_dim(sizes.value_dim),
        o(static_cast<std::size_t>(tokens * heads * value_dim)),
        lse(static_cast<std::size_t>(tokens * heads), std::numeric_limits<C>::quiet_NaN()) {
    for (T& value : o) store_scalar(value, std::numeric_limits<float>::quiet_NaN());
  }

  index_t tokens() const { return std::ssize(lse) / heads; }
  const T* o_row(index_t token) const { return o.data() + token * heads * value_dim; }
  const C* lse_row(index_t token) const { return lse.data() + token * heads; }
  heads_view<T> o_view() { return token_major(o.data(), tokens(), heads, value_dim); }
  heads_view<const T> o_view() const { return token_major(o.data(), tokens(), heads, value_dim); }
  lse_view<C> lse_heads() { return token_major_lse(lse.data(), tokens(), heads); }
  lse_view<const C> lse_heads() const { return token_major_lse(lse.data(), tokens(), heads); }
};

/// What an identity is called with besides its tensors.
template <class T>
struct plain_options {
  attention_options attention = {};
  std::vector<accumulator_t<T>> sink_logits = {};
  tile_shape tiles = {16, 32};
};

template <class T, class Backend>
plain_outputs<T> run_forward(const Backend& backend,
                             const plain_inputs<T>& in,
                             const attention_mask& mask,
                             const plain_options<T>& options = {}) {
  const plain_sizes& s = in.sizes;
  plain_outputs<T> out(in.queries(), s);
  const forward_arguments<T> arguments = {
      .q = token_major(in.q.data(), in.queries(), s.query_heads, s.head_dim),
      .k = token_major(in.k.data(), in.keys(), s.kv_heads, s.head_dim),
      .v = token_major(in.v.data(), in.keys(), s.kv_heads, s.value_dim),
      .o = out.o_view(),
      .lse = out.lse_heads(),
      .sink_logits = options.sink_logits};
  backend.forward(arguments, head_masks(mask, options.tiles), options.attention);
  return out;
}

/// Whether row i of a and row j of b have the same bits in o and lse.
template <class T>
bool same_bits(const plain_outputs<T>& a, index_t i, const plain_outputs<T>& b, index_t j) {
  const auto heads = static_cast<std::size_t>(a.heads);
  return std::memcmp(a.o_row(i), b.o_row(j),
                     heads * static_cast<std::size_t>(a.value_dim) * sizeof(T)) == 0 &&
         std::memcmp(a.lse_row(i), b.lse_row(j), heads * sizeof(accumulator_t<T>)) == 0;
}

template <class T>
bool same_bits(const plain_outputs<T>& a, const plain_outputs<T>& b) {
  if (a.tokens() != b.tokens()) return false;
  for (index_t i = 0; i < a.tokens(); ++i) {
    if (!same_bits(a, i, b, i)) return false;
  }
  return true;
}

/// |a - b|, 0 for equal infinities; NaN counts as infinitely far.
inline double distance(double a, double b) {
  if (a == b) return 0;
  const double apart = std::abs(a - b);
  return std::isnan(apart) ? std::numeric_limits<double>::infinity() : apart;
}

/// The largest distance between row i of a and row j of b in o and lse.
template <class T>
double row_distance(const plain_outputs<T>& a, index_t i, const plain_outputs<T>& b, index_t j) {
  double largest = 0;
  for (index_t t = 0; t < a.heads * a.value_dim; ++t) {
    largest = std::max(largest, distance(static_cast<double>(load_scalar(a.o_row(i)[t])),
                                         static_cast<double>(load_scalar(b.o_row(j)[t]))));
  }
  for (index_t h = 0; h < a.heads; ++h) {
    largest = std::max(largest, distance(static_cast<double>(a.lse_row(i)[h]),
                                         static_cast<double>(b.lse_row(j)[h])));
  }
  return largest;
}

template <class T>
double row_distance(const plain_outputs<T>& a, const plain_outputs<T>& b) {
  if (a.tokens() != b.tokens()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (index_t i = 0; i < a.tokens(); ++i) largest = std::max(largest, row_distance(a, i, b, i));
  return largest;
}

/// How far two ways to compute the same rows of normal data may be apart: o and lse are a few
/// units.
template <class T>
inline constexpr double identity_tolerance = sizeof(T) == 8 ? 2e-14 : 1e-5;

/// Calls check(random) for `count` seeds; a failure prints the seed that repeats it.
template <class Check>
void for_random_seeds(std::uint64_t default_seed, int count, const Check& check) {
  const std::uint64_t first = test_seed(default_seed);
  for (int i = 0; i < count; ++i) {
    const std::uint64_t seed = first + static_cast<std::uint64_t>(i);
    INFO("repeat with BLOCKATTN_SEED=" << seed);
    random_source random(seed);
    check(random);
  }
}

}  // namespace blockattn_test
