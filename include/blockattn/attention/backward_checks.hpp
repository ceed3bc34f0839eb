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

/// A gradient that is written begins where no tensor does that is still to be read.
template <class Gradient, class... Arguments>
void check_gradient(const char* function,
                    const char* gradient_name,
                    const heads_view<Gradient>& gradient,
                    const backward_arguments<Arguments...>& arguments) {
  check_output_view(function, gradient_name, gradient);
  check_outputs_apart(function, gradient_name, gradient, "q", arguments.q);
  check_outputs_apart(function, gradient_name, gradient, "k", arguments.k);
  check_outputs_apart(function, gradient_name, gradient, "v", arguments.v);
  check_outputs_apart(function, gradient_name, gradient, "o", arguments.o);
  check_outputs_apart(function, gradient_name, gradient, "d_o", arguments.d_o);
}

/// Tensors against each other: what can be checked without the values of the sink logits, which may
/// be on a device. The caller checks them against the axes of its mask or plan.
template <class... Types>
void check_backward_shapes(const char* function,
                           const backward_arguments<Types...>& arguments,
                           const attention_options& options) {
  using C = typename backward_arguments<Types...>::accumulator_type;
  const auto& a = arguments;
  check_view(function, "q", a.q);
  check_view(function, "k", a.k);
  check_view(function, "v", a.v);
  check_view(function, "o", a.o);
  check_view(function, "d_o", a.d_o);
  check_heads(function, a.q, a.k, a.v, a.o);
  check_same_shape(function, "d_o", a.d_o, "o", a.o);
  require(a.lse || a.q.tokens * a.q.heads == 0, function,
          ": lse.data is null; backward needs the lse that forward returned");
  check_lse_view(function, a.lse, a.q.tokens, a.q.heads);
  check_lse_view(function, a.d_lse, a.q.tokens, a.q.heads, "d_lse");
  check_sink_count<C>(function, a.sink_logits, a.q.heads);
  require(a.d_sink_logits.empty() || a.d_sink_logits.size() == a.sink_logits.size(), function, ": ",
          a.d_sink_logits.size(), " d_sink_logits for ", a.sink_logits.size(), " sink_logits");
  check_same_shape(function, "d_q", a.d_q, "q", a.q);
  check_same_shape(function, "d_k", a.d_k, "k", a.k);
  check_same_shape(function, "d_v", a.d_v, "v", a.v);
  check_gradient(function, "d_q", a.d_q, a);
  check_gradient(function, "d_k", a.d_k, a);
  check_gradient(function, "d_v", a.d_v, a);
  check_outputs_apart(function, "d_q", a.d_q, "d_k", a.d_k);
  check_outputs_apart(function, "d_q", a.d_q, "d_v", a.d_v);
  check_outputs_apart(function, "d_k", a.d_k, "d_v", a.d_v);
  check_options<C>(function, options);
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
