// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/backward_arguments.hpp>
#include <blockattn/attention/checks.hpp>

/// \file
/// What every backend's backward refuses, in sentences, before anything is written.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// A gradient has the shape of its tensor.
template <class Gradient, class T>
void check_same_shape(const char* function,
                      const char* gradient_name,
                      const heads_view<Gradient>& gradient,
                      const char* name,
                      const heads_view<T>& tensor) {
  require(gradient.tokens == tensor.tokens && gradient.heads == tensor.heads &&
              gradient.head_dim == tensor.head_dim,
          function, ": ", gradient_name, " is (", gradient.tokens, ", ", gradient.heads, ", ",
          gradient.head_dim, ") but ", name, " is (", tensor.tokens, ", ", tensor.heads, ", ",
          tensor.head_dim, ")");
}

/// As for forward.
template <class... Types, class Visit>
void visit_memory(const backward_arguments<Types...>& a, const Visit& visit) {
  visit("d_q", a.d_q);
  visit("d_k", a.d_k);
  visit("d_v", a.d_v);
  visit("d_sink_logits", a.d_sink_logits);
  visit("q", a.q);
  visit("k", a.k);
  visit("v", a.v);
  visit("o", a.o);
  visit("d_o", a.d_o);
  visit("lse", a.lse);
  visit("d_lse", a.d_lse);
  visit("sink_logits", a.sink_logits);
}

/// Tensors against each other: what can be checked without the values of the sink logits, which may
/// be on a device. The caller checks them against the axes of its mask or plan.
template <class... Types>
void check_backward_shapes(const char* function,
                           const backward_arguments<Types...>& arguments,
                           const attention_options& options,
                           memory_state memory = memory_state::allocated) {
  using C = typename backward_arguments<Types...>::accumulator_type;
  const auto& a = arguments;
  check_view(function, "q", a.q, memory);
  check_view(function, "k", a.k, memory);
  check_view(function, "v", a.v, memory);
  check_view(function, "o", a.o, memory);
  check_view(function, "d_o", a.d_o, memory);
  check_heads(function, a.q, a.k, a.v, a.o);
  check_same_shape(function, "d_o", a.d_o, "o", a.o);
  const bool needs_lse = a.q.tokens > 0 && a.q.heads > 0 && memory == memory_state::allocated;
  require(a.lse || !needs_lse, function,
          ": lse.data is null; backward needs the lse that forward returned");
  check_lse_view(function, a.lse, a.q.tokens, a.q.heads);
  check_lse_view(function, a.d_lse, a.q.tokens, a.q.heads, "d_lse");
  check_sink_count<C>(function, a.sink_logits, a.q.heads);
  require(a.d_sink_logits.empty() || a.d_sink_logits.size() == a.sink_logits.size(), function, ": ",
          a.d_sink_logits.size(), " d_sink_logits for ", a.sink_logits.size(), " sink_logits");
  check_same_shape(function, "d_q", a.d_q, "q", a.q);
  check_same_shape(function, "d_k", a.d_k, "k", a.k);
  check_same_shape(function, "d_v", a.d_v, "v", a.v);
  check_output_view(function, "d_q", a.d_q, memory);
  check_output_view(function, "d_k", a.d_k, memory);
  check_output_view(function, "d_v", a.d_v, memory);
  check_options<C>(function, options);
  if (memory == memory_state::not_yet) return;
  check_apart(function,
              {{"d_q", footprint_of(a.d_q)},
               {"d_k", footprint_of(a.d_k)},
               {"d_v", footprint_of(a.d_v)},
               {"d_sink_logits", footprint_of(a.d_sink_logits)}},
              {{"q", footprint_of(a.q)},
               {"k", footprint_of(a.k)},
               {"v", footprint_of(a.v)},
               {"o", footprint_of(a.o)},
               {"d_o", footprint_of(a.d_o)},
               {"lse", footprint_of(a.lse)},
               {"d_lse", footprint_of(a.d_lse)},
               {"sink_logits", footprint_of(a.sink_logits)}});
}

/// The same, and the values of the sink logits.
template <class... Types>
void check_backward(const char* function,
                    const backward_arguments<Types...>& arguments,
                    const attention_options& options) {
  check_backward_shapes(function, arguments, options);
  check_sink_values(function, arguments.sink_logits);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
