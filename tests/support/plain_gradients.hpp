// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_arguments.hpp>

#include "support/plain_tensors.hpp"

namespace blockattn_test {

/// What the loss says about the outputs of a forward call: loss = d_o . o + d_lse . lse.
template <class T>
struct plain_loss {
  std::vector<T> d_o;                   ///< (queries, query_heads, value_dim)
  std::vector<accumulator_t<T>> d_lse;  ///< (queries, query_heads), or empty
};

template <class T>
plain_loss<T> random_loss(random_source& random, const plain_inputs<T>& in, bool with_lse) {
  const plain_sizes& s = in.sizes;
  return {random.normal_values<T>(in.queries() * s.query_heads * s.value_dim),
          random.normal_values<accumulator_t<T>>(with_lse ? in.queries() * s.query_heads : 0)};
}

/// Gradients in contiguous token-major vectors. Elements that nobody wrote are NaN.
template <class T>
struct plain_gradients {
  std::vector<T> d_q, d_k, d_v;                 ///< like plain_inputs
  std::vector<accumulator_t<T>> d_sink_logits;  ///< (query_heads), or empty
};

template <class T>
std::vector<T> nan_like(const std::vector<T>& values) {
  std::vector<T> result(values.size());
  for (T& value : result) store_scalar(value, std::numeric_limits<float>::quiet_NaN());
  return result;
}

/// Backward with the o and lse of `out`.
template <class T, class Backend>
plain_gradients<T> run_backward(const Backend& backend,
                                const plain_inputs<T>& in,
                                const plain_outputs<T>& out,
                                const plain_loss<T>& loss,
                                const attention_mask& mask,
                                const plain_options<T>& options = {}) {
  using C = accumulator_t<T>;
  const plain_sizes& s = in.sizes;
  plain_gradients<T> g = {nan_like(in.q), nan_like(in.k), nan_like(in.v),
                          nan_like(options.sink_logits)};
  backend.backward(
      backward_arguments<T>{
          .q = token_major(in.q.data(), in.queries(), s.query_heads, s.head_dim),
          .k = token_major(in.k.data(), in.keys(), s.kv_heads, s.head_dim),
          .v = token_major(in.v.data(), in.keys(), s.kv_heads, s.value_dim),
          .o = out.o_view(),
          .lse = out.lse_heads(),
          .d_o = token_major(loss.d_o.data(), in.queries(), s.query_heads, s.value_dim),
          .d_q = token_major(g.d_q.data(), in.queries(), s.query_heads, s.head_dim),
          .d_k = token_major(g.d_k.data(), in.keys(), s.kv_heads, s.head_dim),
          .d_v = token_major(g.d_v.data(), in.keys(), s.kv_heads, s.value_dim),
          .d_lse = loss.d_lse.empty()
                       ? lse_view<const C>{}
                       : token_major_lse(loss.d_lse.data(), in.queries(), s.query_heads),
          .sink_logits = options.sink_logits,
          .d_sink_logits = g.d_sink_logits},
      head_masks(mask, options.tiles), options.attention);
  return g;
}

/// Forward, then backward.
template <class T, class Backend>
plain_gradients<T> run_gradients(const Backend& backend,
                                 const plain_inputs<T>& in,
                                 const plain_loss<T>& loss,
                                 const attention_mask& mask,
                                 const plain_options<T>& options = {}) {
  return run_backward(backend, in, run_forward(backend, in, mask, options), loss, mask, options);
}

/// max |a - b|; NaN counts as infinitely far.
template <class T>
double largest_distance(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, distance(static_cast<double>(load_scalar(a[i])),
                                         static_cast<double>(load_scalar(b[i]))));
  }
  return largest;
}

}  // namespace blockattn_test
