// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/merge_arguments.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Where the gradients of one partial state go. A part that is left empty is not wanted, as for the
/// state of cached keys that stay as they are.
template <storage_scalar D = float, class C = accumulator_t<D>>
struct partial_state_gradient {
  heads_view<D> d_o = {};              ///< (query_tokens, query_heads, value_dim), written
  lse_view<C> d_lse = {};              ///< (query_tokens, query_heads), written
  lse_view<C> d_row_log_weights = {};  ///< (query_tokens, query_heads), written; needs its input
};

/// What a merge was given, the gradients of its results, and the gradients to write. The merged
/// state itself is not needed. Gradients may be stored in another type than their tensors and
/// overlap nothing else.
template <storage_scalar P = float, storage_scalar O = P, storage_scalar D = P>
struct merge_backward_arguments {
  using accumulator_type = accumulator_t<P, O, D>;

  std::span<const partial_state<P, accumulator_type>> states;  ///< as merge had them
  heads_view<const O> d_o;  ///< (query_tokens, query_heads, value_dim)
  /// (query_tokens, query_heads) gradient of lse, where the loss depends on it; optional.
  lse_view<const accumulator_type> d_lse = {};
  std::span<const partial_state_gradient<D, accumulator_type>> gradients;  ///< (states), written
  std::span<const accumulator_type> sink_logits = {};  ///< (query_heads) as merge had them
  /// (query_heads) written; empty = not wanted. Needs sink_logits.
  std::span<accumulator_type> d_sink_logits = {};
};

namespace detail {

template <class D, class C>
void check_state_gradient(const state_place& place,
                          const partial_state_gradient<D, C>& gradient,
                          bool has_row_log_weights,
                          index_t tokens,
                          index_t heads,
                          index_t value_dim,
                          memory_state memory) {
  const auto& d_o = gradient.d_o;
  check_output_view(place, "d_o", d_o, memory);
  require(!d_o.data || (d_o.tokens == tokens && d_o.heads == heads && d_o.head_dim == value_dim),
          place, ": d_o is (", d_o.tokens, ", ", d_o.heads, ", ", d_o.head_dim,
          ") but the gradient of the result is (", tokens, ", ", heads, ", ", value_dim, ")");
  check_lse_view(place, gradient.d_lse, tokens, heads, "d_lse");
  check_lse_view(place, gradient.d_row_log_weights, tokens, heads, "d_row_log_weights");
  require(!gradient.d_row_log_weights || has_row_log_weights, place,
          ": d_row_log_weights is wanted but the state has no row_log_weights");
}

/// As for forward.
template <class P, class O, class D, class Visit>
void visit_memory(const merge_backward_arguments<P, O, D>& a, const Visit& visit) {
  visit("d_o", a.d_o);
  visit("d_lse", a.d_lse);
  visit("sink_logits", a.sink_logits);
  visit("d_sink_logits", a.d_sink_logits);
  visit_memory(a.states, visit);
  for (const auto& gradient : a.gradients) {
    visit("d_o of a state", gradient.d_o);
    visit("d_lse of a state", gradient.d_lse);
    visit("d_row_log_weights of a state", gradient.d_row_log_weights);
  }
}

/// What is written overlaps nothing else. O(states^2).
template <class P, class O, class D>
void check_gradients_apart(const char* function,
                           const merge_backward_arguments<P, O, D>& arguments) {
  const auto each = [](const auto& gradient, const auto& visit) {
    visit(named_memory{"d_o", footprint_of(gradient.d_o)});
    visit(named_memory{"d_lse", footprint_of(gradient.d_lse)});
    visit(named_memory{"d_row_log_weights", footprint_of(gradient.d_row_log_weights)});
  };
  const auto against_inputs = [&](const auto& place, const named_memory& written) {
    check_apart(place, written, {"d_o of the result", footprint_of(arguments.d_o)});
    check_apart(place, written, {"d_lse of the result", footprint_of(arguments.d_lse)});
    check_apart(place, written, {"sink_logits", footprint_of(arguments.sink_logits)});
    for (const auto& state : arguments.states) {
      check_apart(place, written, {"o of a state", footprint_of(state.o)});
      check_apart(place, written, {"lse of a state", footprint_of(state.lse)});
      check_apart(place, written,
                  {"row_log_weights of a state", footprint_of(state.row_log_weights)});
    }
  };
  const named_memory d_sinks = {"d_sink_logits", footprint_of(arguments.d_sink_logits)};
  against_inputs(function, d_sinks);
  for (std::size_t s = 0; s < arguments.gradients.size(); ++s) {
    const state_place place{function, static_cast<index_t>(s)};
    const auto& gradient = arguments.gradients[s];
    const named_memory d_o = {"d_o", footprint_of(gradient.d_o)};
    const named_memory d_lse = {"d_lse", footprint_of(gradient.d_lse)};
    check_apart(place, d_o, d_lse);
    const named_memory d_weights = {"d_row_log_weights", footprint_of(gradient.d_row_log_weights)};
    check_apart(place, d_o, d_weights);
    check_apart(place, d_lse, d_weights);
    each(gradient, [&](const named_memory& written) {
      check_apart(place, written, d_sinks);
      against_inputs(place, written);
      for (std::size_t other = 0; other < s; ++other) {
        each(arguments.gradients[other],
             [&](const named_memory& earlier) { check_apart(place, written, earlier); });
      }
    });
  }
}

/// What can be checked without the values of the sink logits, which may be on a device.
template <class P, class O, class D>
void check_merge_backward_shapes(const char* function,
                                 const merge_backward_arguments<P, O, D>& arguments,
                                 memory_state memory = memory_state::allocated) {
  const auto& d_o = arguments.d_o;
  check_view(function, "d_o", d_o, memory);
  check_lse_view(function, arguments.d_lse, d_o.tokens, d_o.heads, "d_lse");
  check_sink_count(function, arguments.sink_logits, d_o.heads);
  const std::size_t d_sinks = arguments.d_sink_logits.size();
  require(d_sinks == 0 || d_sinks == arguments.sink_logits.size(), function, ": ", d_sinks,
          " d_sink_logits for ", arguments.sink_logits.size(), " sink_logits");
  check_states(function, arguments.states, d_o.tokens, d_o.heads, d_o.head_dim, memory);
  require(arguments.gradients.size() == arguments.states.size(), function, ": ",
          arguments.gradients.size(), " gradients for ", arguments.states.size(), " states");
  for (std::size_t s = 0; s < arguments.states.size(); ++s) {
    const state_place place{function, static_cast<index_t>(s)};
    check_state_gradient(place, arguments.gradients[s],
                         static_cast<bool>(arguments.states[s].row_log_weights), d_o.tokens,
                         d_o.heads, d_o.head_dim, memory);
  }
  if (memory == memory_state::allocated) check_gradients_apart(function, arguments);
}

template <class P, class O, class D>
void check_merge_backward(const char* function,
                          const merge_backward_arguments<P, O, D>& arguments) {
  check_merge_backward_shapes(function, arguments);
  check_sink_values(function, arguments.sink_logits);
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
