// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/checks.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// The softmax states of all rows over one part of the keys, and what they bring to a merge in
/// place of lse:
///   log_weight_scale * lse + log_weight [+ row_log_weights].
/// The defaults merge plainly. APE: (sigma, 0) for the context part. Landmark attention: (0, 0) and
/// the landmark's logits as row_log_weights. A state with lse = -inf is absent and its o is not
/// read.
template <storage_scalar P = float, class C = accumulator_t<P>>
struct partial_state {
  heads_view<const P> o;  ///< (query_tokens, query_heads, value_dim)
  lse_view<const C> lse;  ///< (query_tokens, query_heads), natural log
  double log_weight_scale = 1;
  double log_weight = 0;                   ///< natural log; -inf: absent
  lse_view<const C> row_log_weights = {};  ///< (query_tokens, query_heads), natural log; optional
};

template <storage_scalar P = float, storage_scalar O = P>
struct merge_arguments {
  using accumulator_type = accumulator_t<P, O>;

  std::span<const partial_state<P, accumulator_type>> states;
  heads_view<O> o;  ///< (query_tokens, query_heads, value_dim), written; may be the o of one state
  /// (query_tokens, query_heads), written; optional. May be the lse of one state.
  lse_view<accumulator_type> lse = {};
  /// (query_heads), counted once; empty = none.
  std::span<const accumulator_type> sink_logits = {};
};

namespace detail {

/// Opens an error sentence about one state.
struct state_place {
  const char* function;
  index_t state;
};
inline void append_part(std::string& text, const state_place& place) {
  text += sentence(place.function, ": state ", place.state);
}

/// States against the (tokens, heads, value_dim) result of their merge.
template <class P, class C>
void check_states(const char* function,
                  std::span<const partial_state<P, C>> states,
                  index_t tokens,
                  index_t heads,
                  index_t value_dim,
                  memory_state memory) {
  index_t number = 0;
  for (const auto& state : states) {
    const state_place place{function, number++};
    check_view(place, "o", state.o, memory);
    require(state.o.tokens == tokens && state.o.heads == heads && state.o.head_dim == value_dim,
            place, ": o is (", state.o.tokens, ", ", state.o.heads, ", ", state.o.head_dim,
            ") but the result is (", tokens, ", ", heads, ", ", value_dim, ")");
    require(state.lse || tokens == 0 || heads == 0 || memory == memory_state::not_yet, place,
            ": lse is missing");
    check_lse_view(place, state.lse, tokens, heads);
    check_lse_view(place, state.row_log_weights, tokens, heads, "row_log_weights");
    require(is_finite_as<C>(state.log_weight_scale) && is_log_weight<C>(state.log_weight), place,
            ": log_weight_scale ", state.log_weight_scale, " must be finite and log_weight ",
            state.log_weight, " finite or -inf, in the accumulator");
  }
}

/// As for forward.
template <class P, class C, class Visit>
void visit_memory(std::span<const partial_state<P, C>> states, const Visit& visit) {
  for (const auto& state : states) {
    visit("o of a state", state.o);
    visit("lse of a state", state.lse);
    visit("row_log_weights of a state", state.row_log_weights);
  }
}
template <class P, class O, class Visit>
void visit_memory(const merge_arguments<P, O>& a, const Visit& visit) {
  visit("o", a.o);
  visit("lse", a.lse);
  visit("sink_logits", a.sink_logits);
  visit_memory(a.states, visit);
}

/// What can be checked without the values of the sink logits, which may be on a device.
template <class P, class O>
void check_merge_shapes(const char* function,
                        const merge_arguments<P, O>& arguments,
                        memory_state memory = memory_state::allocated) {
  const auto& o = arguments.o;
  check_output_view(function, "o", o, memory);
  check_lse_view(function, arguments.lse, o.tokens, o.heads);
  check_sink_count(function, arguments.sink_logits, o.heads);
  check_states(function, arguments.states, o.tokens, o.heads, o.head_dim, memory);
  if (memory == memory_state::not_yet) return;
  const named_memory o_memory = {"o of the result", footprint_of(o)};
  const named_memory lse_memory = {"lse of the result", footprint_of(arguments.lse)};
  check_apart(function, {o_memory, lse_memory},
              {{"sink_logits", footprint_of(arguments.sink_logits)}});
  index_t number = 0;
  for (const auto& state : arguments.states) {
    const state_place place{function, number++};
    check_same_or_apart(place, "o of the result", o, "o", state.o);
    check_same_or_apart(place, "lse of the result", arguments.lse, "lse", state.lse);
    check_apart(place, lse_memory, {"o", footprint_of(state.o)});
    check_apart(place, o_memory, {"lse", footprint_of(state.lse)});
    const named_memory weights = {"row_log_weights", footprint_of(state.row_log_weights)};
    check_apart(place, o_memory, weights);
    check_apart(place, lse_memory, weights);
  }
}

template <class P, class O>
void check_merge(const char* function, const merge_arguments<P, O>& arguments) {
  check_merge_shapes(function, arguments);
  check_sink_values(function, arguments.sink_logits);
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
