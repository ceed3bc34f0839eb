// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_arguments.hpp>
#include <blockattn/reference/backward.hpp>
#include <blockattn/reference/forward.hpp>

#include "support/attention_case.hpp"

namespace blockattn_test {

/// One head of a (tokens, heads, head_dim) view.
template <class T>
heads_view<T> head_of(heads_view<T> view, index_t head) {
  view.data += head * view.head_stride;
  view.heads = 1;
  return view;
}
template <class T>
lse_view<T> head_of(lse_view<T> view, index_t head) {
  if (!view) return view;
  view.data += head * view.head_stride;
  view.heads = 1;
  return view;
}

/// Backward needs key tiles of one size for the heads that share a kv head: those of the first
/// mask.
inline attention_case random_backward_case(std::uint64_t seed, const case_limits& limits = {}) {
  attention_case c = random_attention_case(seed, limits);
  for (tile_shape& shape : c.masks.shapes) shape.keys = c.masks.shapes[0].keys;
  return c;
}

/// The tensors of a backward call in the wanted storage types: o and lse as the reference gives
/// them, normal d_o and (in half of the cases) d_lse. Keys, values and queries that take no part
/// are NaN.
template <class Q, class K, class V, class O, class DQ = Q, class DK = K, class DV = V>
struct backward_tensors {
  using arguments_type = backward_arguments<Q, K, V, O, DQ, DK, DV>;
  using C = typename arguments_type::accumulator_type;

  attention_tensors<Q, K, V, O> in;
  hostile_tensor<O> d_o;
  hostile_tensor<C> d_lse;
  hostile_tensor<DQ> d_q;
  hostile_tensor<DK> d_k;
  hostile_tensor<DV> d_v;
  std::vector<C> d_sink_logits;
  bool with_d_lse;

  explicit backward_tensors(const attention_case& c) : backward_tensors(c, c.seed ^ 0xb4ccULL) {}

  arguments_type arguments() {
    return {.q = in.q.view(),
            .k = in.k.view(),
            .v = in.v.view(),
            .o = in.o.view(),
            .lse = in.lse.as_lse(),
            .d_o = d_o.view(),
            .d_q = d_q.view(),
            .d_k = d_k.view(),
            .d_v = d_v.view(),
            .d_lse = with_d_lse ? lse_view<const C>(d_lse.as_lse()) : lse_view<const C>{},
            .sink_logits = in.sink_logits,
            .d_sink_logits = d_sink_logits};
  }

  bool margins_untouched() const {
    return in.margins_untouched() && d_o.margins_untouched() && d_lse.margins_untouched() &&
           d_q.margins_untouched() && d_k.margins_untouched() && d_v.margins_untouched();
  }
  bool same_bits(const backward_tensors& other) const {
    return d_q.same_bits(other.d_q) && d_k.same_bits(other.d_k) && d_v.same_bits(other.d_v) &&
           std::memcmp(d_sink_logits.data(), other.d_sink_logits.data(),
                       d_sink_logits.size() * sizeof(C)) == 0;
  }

 private:
  backward_tensors(const attention_case& c, std::uint64_t seed)
      : backward_tensors(c, random_source(seed)) {}

  backward_tensors(const attention_case& c, random_source&& random)
      : in(c),
        d_o(c.query_tokens(), c.query_heads, c.value_dim, random_tensor_layout(random)),
        d_lse(c.query_tokens(), c.query_heads, 1, random_tensor_layout(random)),
        d_q(c.query_tokens(), c.query_heads, c.head_dim, random_tensor_layout(random)),
        d_k(c.key_tokens(), c.kv_heads, c.head_dim, random_tensor_layout(random)),
        d_v(c.key_tokens(), c.kv_heads, c.value_dim, random_tensor_layout(random)),
        d_sink_logits(in.sink_logits.size(), std::numeric_limits<C>::quiet_NaN()),
        with_d_lse(random.chance(0.5)) {
    const auto every_token = [](index_t /*token*/) { return true; };
    d_o.fill_normal(random, 1, every_token);
    d_lse.fill_normal(random, 1, every_token);
    for (index_t h = 0; h < c.query_heads; ++h) {
      const auto sink = static_cast<std::size_t>(h);
      const index_t kv_head = h / (c.query_heads / c.kv_heads);
      reference::forward<Q, K, V, O>({.q = head_of(in.q.view(), h),
                                      .k = head_of(in.k.view(), kv_head),
                                      .v = head_of(in.v.view(), kv_head),
                                      .o = head_of(in.o.view(), h),
                                      .lse = head_of(in.lse.as_lse(), h),
                                      .sink_logits = std::span<const C>(in.sink_logits)
                                                         .subspan(in.sink_logits.empty() ? 0 : sink,
                                                                  in.sink_logits.empty() ? 0 : 1)},
                                     c.masks.of_head(h), c.options);
    }
  }
};

}  // namespace blockattn_test
