// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/arguments.hpp>
#include <blockattn/core/error.hpp>
#include <blockattn/core/overlap_checks.hpp>
#include <blockattn/core/view_checks.hpp>
#include <cmath>
#include <limits>
#include <numbers>

/// \file
/// What every backend refuses, in sentences, before anything is written. `function` is the public
/// name in the text.

namespace blockattn::inline BLOCKATTN_ABI::detail {

template <class Place, class T>
void check_lse_view(const Place& place,
                    const lse_view<T>& lse,
                    index_t tokens,
                    index_t heads,
                    const char* name = "lse") {
  if (!lse) return;
  require(lse.tokens == tokens && lse.heads == heads, place, ": ", name, " is (", lse.tokens, ", ",
          lse.heads, ") but there are (", tokens, ", ", heads, ") query tokens and heads");
  check_extent(place, name, tokens, lse.token_stride, heads, lse.head_stride, 1, sizeof(T));
  if constexpr (std::is_const_v<T>) {
    check_input_strides(place, name, lse);
  } else {
    require(rows_are_disjoint(tokens, heads, 1, lse.token_stride, lse.head_stride), place,
            ": entries of ", name, " overlap: token_stride ", lse.token_stride, ", head_stride ",
            lse.head_stride);
  }
}

/// True when a number that an argument gives in double is finite in the accumulator C too.
template <class C>
bool is_finite_as(double value) noexcept {
  return std::abs(value) <= static_cast<double>(std::numeric_limits<C>::max());
}

/// The same for a factor of scores, which kernels multiply by log2(e).
template <class C>
bool is_finite_in_base_2(double value) noexcept {
  return is_finite_as<C>(value * std::numbers::log2e);
}

/// The same for a log weight, which may also be -inf.
template <class C>
bool is_log_weight(double value) noexcept {
  return is_finite_as<C>(value) || value == -std::numeric_limits<double>::infinity();
}

template <class C>
void check_options(const char* function, const attention_options& options) {
  require(!options.scale || is_finite_in_base_2<C>(*options.scale), function, ": options.scale is ",
          options.scale.value_or(0), ", must be finite in the accumulator, also times log2(e)");
  require(is_finite_in_base_2<C>(options.softcap) && options.softcap >= 0, function,
          ": options.softcap is ", options.softcap,
          ", must be >= 0 and finite in the accumulator, also times log2(e)");
  if (options.softcap == 0) return;
  constexpr auto smallest = static_cast<double>(std::numeric_limits<C>::min());
  require(options.softcap >= smallest, function,
          ": options.softcap is below the smallest normal number of the accumulator, 2^",
          std::numeric_limits<C>::min_exponent - 1);
  require(is_finite_as<C>(options.scale.value_or(1) / options.softcap), function,
          ": options.scale / options.softcap is ", options.scale.value_or(1), " / ",
          options.softcap, ", must be finite in the accumulator");
}

template <class C>
void check_sink_count(const char* function, std::span<const C> sink_logits, index_t query_heads) {
  const auto count = static_cast<index_t>(sink_logits.size());
  require(count == 0 || count == query_heads, function, ": ", count, " sink_logits for ",
          query_heads, " query heads");
}

/// Reads the values, which callers whose sinks are on a device do not have.
template <class C>
void check_sink_values(const char* function, std::span<const C> sink_logits) {
  for (std::size_t head = 0; head < sink_logits.size(); ++head) {
    require(sink_logits[head] <= std::numeric_limits<C>::max(), function, ": sink_logits[", head,
            "] is ", sink_logits[head], ", must be finite or -inf");
  }
}

/// Head counts and dimensions of q, k, v and o agree.
template <class Place, class Q, class K, class V, class O>
void check_heads(const Place& place,
                 const heads_view<Q>& q,
                 const heads_view<K>& k,
                 const heads_view<V>& v,
                 const heads_view<O>& o) {
  require(k.heads > 0 ? q.heads % k.heads == 0 : q.heads == 0, place, ": q has ", q.heads,
          " heads, not a multiple of the ", k.heads, " heads of k");
  require(v.heads == k.heads, place, ": v has ", v.heads, " heads but k has ", k.heads);
  require(o.heads == q.heads, place, ": o has ", o.heads, " heads but q has ", q.heads);
  require(k.head_dim == q.head_dim, place, ": k.head_dim is ", k.head_dim, " but q.head_dim is ",
          q.head_dim);
  require(o.head_dim == v.head_dim, place, ": o.head_dim is ", o.head_dim, " but v.head_dim is ",
          v.head_dim);
  require(v.tokens == k.tokens, place, ": v has ", v.tokens, " tokens but k has ", k.tokens);
  require(o.tokens == q.tokens, place, ": o has ", o.tokens, " tokens but q has ", q.tokens);
}

/// Calls visit(name, view) for every tensor of a call.
template <class Q, class K, class V, class O, class Visit>
void visit_memory(const forward_arguments<Q, K, V, O>& a, const Visit& visit) {
  visit("o", a.o);
  visit("lse", a.lse);
  visit("q", a.q);
  visit("k", a.k);
  visit("v", a.v);
  visit("sink_logits", a.sink_logits);
}

/// Tensors against each other: what can be checked without the values of the sink logits, which may
/// be on a device. The caller checks them against the axes of its mask or plan.
template <class Q, class K, class V, class O>
void check_forward_shapes(const char* function,
                          const forward_arguments<Q, K, V, O>& arguments,
                          const attention_options& options,
                          memory_state memory = memory_state::allocated) {
  using C = typename forward_arguments<Q, K, V, O>::accumulator_type;
  check_view(function, "q", arguments.q, memory);
  check_view(function, "k", arguments.k, memory);
  check_view(function, "v", arguments.v, memory);
  check_output_view(function, "o", arguments.o, memory);
  check_heads(function, arguments.q, arguments.k, arguments.v, arguments.o);
  check_lse_view(function, arguments.lse, arguments.q.tokens, arguments.q.heads);
  check_sink_count<C>(function, arguments.sink_logits, arguments.q.heads);
  check_options<C>(function, options);
  if (memory == memory_state::not_yet) return;
  check_apart(function, {{"o", footprint_of(arguments.o)}, {"lse", footprint_of(arguments.lse)}},
              {{"q", footprint_of(arguments.q)},
               {"k", footprint_of(arguments.k)},
               {"v", footprint_of(arguments.v)},
               {"sink_logits", footprint_of(arguments.sink_logits)}});
}

/// The same, and the values of the sink logits.
template <class Q, class K, class V, class O>
void check_forward(const char* function,
                   const forward_arguments<Q, K, V, O>& arguments,
                   const attention_options& options) {
  check_forward_shapes(function, arguments, options);
  check_sink_values(function, arguments.sink_logits);
}

/// A head's scale factor: the option, or 1 / sqrt(head_dim).
inline double resolved_scale(const std::optional<double>& scale, index_t head_dim) noexcept {
  return scale ? *scale : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
