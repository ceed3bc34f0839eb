// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/attend_arguments.hpp>
#include <blockattn/attention/checks.hpp>
#include <blockattn/layout/token_axis.hpp>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Opens an error sentence about one segment.
struct segment_place {
  const char* function;
  index_t sequence;
  index_t segment;
};
inline void append_part(std::string& text, const segment_place& place) {
  text += sentence(place.function, ": sequence ", place.sequence, ", segment ", place.segment);
}

/// As for forward.
template <class Q, class K, class V, class O, class Visit>
void visit_memory(const attend_arguments<Q, K, V, O>& a, const Visit& visit) {
  visit("o", a.o);
  visit("lse", a.lse);
  visit("q", a.q);
  visit("sink_logits", a.sink_logits);
  const auto visit_segment = [&](const key_segment<K, V>& segment) {
    visit("k of a segment", segment.k);
    visit("v of a segment", segment.v);
  };
  for (const attend_sequence<K, V>& sequence : a.sequences) {
    for (const key_segment<K, V>& segment : sequence.segments) visit_segment(segment);
    visit_segment(sequence.tail);
  }
}

/// What all segments of a call are checked against: there may be thousands.
struct segment_checks {
  named_memory o, lse;
  double unit;  ///< the factor that a segment's score_scale multiplies
  memory_state memory;
  index_t kv_heads = -1;  ///< of the first segment with keys

  /// Ranges first: of thousands of pages hardly one lies near the results.
  template <class T>
  void keep_apart(const segment_place& place, const char* name, const heads_view<T>& view) const {
    if (memory == memory_state::not_yet) return;
    const index_range bytes = byte_range_of(view);
    for (const named_memory* written : {&o, &lse}) {
      if (bytes.end <= written->bytes.begin || written->bytes.end() <= bytes.begin) continue;
      check_apart(place, *written, {name, footprint_of(view)});
    }
  }
};

/// A segment against the queries and results.
template <class Q, class K, class V, class O>
void check_segment(const segment_place& place,
                   const attend_arguments<Q, K, V, O>& arguments,
                   const attend_options& options,
                   const key_segment<K, V>& segment,
                   segment_checks& checks) {
  require(segment.k.tokens <= max_axis_tokens, place, ": k has ", segment.k.tokens,
          " tokens, at most ", max_axis_tokens, " are allowed");
  check_view(place, "k", segment.k, checks.memory);
  check_view(place, "v", segment.v, checks.memory);
  require(segment.v.tokens == segment.k.tokens, place, ": v has ", segment.v.tokens,
          " tokens but k has ", segment.k.tokens);
  using C = typename attend_arguments<Q, K, V, O>::accumulator_type;
  require(std::isfinite(segment.query_shift) && is_finite_as<C>(segment.score_scale) &&
              is_finite_as<C>(segment.log_weight_scale) && is_log_weight<C>(segment.log_weight),
          place, ": query_shift ", segment.query_shift, ", score_scale ", segment.score_scale,
          ", log_weight_scale ", segment.log_weight_scale, " must be finite and log_weight ",
          segment.log_weight, " finite or -inf, in the accumulator");
  if (segment.k.tokens == 0) return;
  check_heads(place, arguments.q, segment.k, segment.v, arguments.o);
  require(is_finite_in_base_2<C>(checks.unit * segment.score_scale), place, ": score_scale ",
          segment.score_scale, options.softcap > 0 ? " times softcap " : " times scale ",
          checks.unit, " is beyond the accumulator");
  checks.keep_apart(place, "k", segment.k);
  checks.keep_apart(place, "v", segment.v);
  if (checks.kv_heads < 0) checks.kv_heads = segment.k.heads;
  require(segment.k.heads == checks.kv_heads, place, ": k has ", segment.k.heads,
          " heads, other segments have ", checks.kv_heads);
  if (segment.query_shift == 0) return;
  require(options.rope != nullptr, place, ": query_shift is ", segment.query_shift,
          " but options.rope is null");
  require(options.rope->head_dim() == arguments.q.head_dim, place,
          ": options.rope is for head_dim ", options.rope->head_dim(), " but q.head_dim is ",
          arguments.q.head_dim);
  require(std::abs(segment.query_shift) <= max_rope_position, place, ": query_shift ",
          segment.query_shift, " is beyond +-", max_rope_position);
}

/// What attend_blocks refuses, but for head dims, which differ by backend, and the values of the sink
/// logits, which may be on a device. Returns the number of kv heads, at least 1. O(segments).
template <class Q, class K, class V, class O>
index_t check_attend_shapes(const char* function,
                            const attend_arguments<Q, K, V, O>& arguments,
                            const attend_options& options,
                            memory_state memory = memory_state::allocated) {
  using C = typename attend_arguments<Q, K, V, O>::accumulator_type;
  require(arguments.q.tokens <= max_axis_tokens, function, ": q has ", arguments.q.tokens,
          " tokens, at most ", max_axis_tokens, " are allowed");
  check_view(function, "q", arguments.q, memory);
  check_output_view(function, "o", arguments.o, memory);
  require(arguments.o.tokens == arguments.q.tokens && arguments.o.heads == arguments.q.heads,
          function, ": o is (", arguments.o.tokens, ", ", arguments.o.heads, ") but q has (",
          arguments.q.tokens, ", ", arguments.q.heads, ") tokens and heads");
  check_lse_view(function, arguments.lse, arguments.q.tokens, arguments.q.heads);
  check_sink_count<C>(function, arguments.sink_logits, arguments.q.heads);
  if (memory == memory_state::allocated) {
    check_apart(
        function, {{"o", footprint_of(arguments.o)}, {"lse", footprint_of(arguments.lse)}},
        {{"q", footprint_of(arguments.q)}, {"sink_logits", footprint_of(arguments.sink_logits)}});
  }
  check_options<C>(function, {.scale = options.scale, .softcap = options.softcap});

  segment_checks checks = {.o = {"o", footprint_of(arguments.o)},
                           .lse = {"lse", footprint_of(arguments.lse)},
                           .unit = options.softcap > 0
                                       ? options.softcap
                                       : resolved_scale(options.scale, arguments.q.head_dim),
                           .memory = memory};
  index_t previous_end = 0;
  index_t number = 0;
  for (const attend_sequence<K, V>& sequence : arguments.sequences) {
    const index_range& queries = sequence.queries;
    require(queries.begin >= previous_end && queries.begin <= queries.end &&
                queries.end <= arguments.q.tokens,
            function, ": sequence ", number, " has queries [", queries.begin, ", ", queries.end,
            "), must follow ", previous_end, " and end by ", arguments.q.tokens);
    previous_end = queries.end;
    const key_segment<K, V>* previous = nullptr;
    const auto check = [&](const key_segment<K, V>& segment, index_t s) {
      check_segment({function, number, s}, arguments, options, segment, checks);
      const segment_place place{function, number, s};
      require(previous == nullptr || previous->partition <= segment.partition, place,
              ": partition ", segment.partition, " after partition ",
              previous == nullptr ? 0 : previous->partition, ", must not decrease");
      require(previous == nullptr || previous->partition != segment.partition ||
                  (previous->log_weight_scale == segment.log_weight_scale &&
                   previous->log_weight == segment.log_weight),
              place, ": partition ", segment.partition,
              " has two different weights (log_weight_scale, log_weight)");
      previous = &segment;
    };
    index_t s = 0;
    for (const key_segment<K, V>& segment : sequence.segments) check(segment, s++);
    // A tail of no tokens has no partition to agree with, but its sizes must make sense.
    if (sequence.tail.k.tokens == 0) previous = nullptr;
    check(sequence.tail, s);
    ++number;
  }
  return checks.kv_heads < 1 ? std::max<index_t>(1, arguments.q.heads) : checks.kv_heads;
}

/// The same, and the values of the sink logits.
template <class Q, class K, class V, class O>
index_t check_attend(const char* function,
                     const attend_arguments<Q, K, V, O>& arguments,
                     const attend_options& options) {
  const index_t kv_heads = check_attend_shapes(function, arguments, options);
  check_sink_values(function, arguments.sink_logits);
  return kv_heads;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
