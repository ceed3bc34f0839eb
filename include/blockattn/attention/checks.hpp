// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/attention/arguments.hpp>
#include <blockattn/core/error.hpp>
#include <cmath>
#include <limits>

/// \file
/// What every backend refuses, in sentences, before anything is written. `function` is the public
/// name in the text.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Sizes are not negative, and a view with elements has memory.
template <class Place, class T>
void check_view(const Place& place, const char* name, const heads_view<T>& view) {
  require(view.tokens >= 0 && view.heads >= 0 && view.head_dim >= 0, place, ": ", name,
          " has negative size (", view.tokens, ", ", view.heads, ", ", view.head_dim, ")");
  require(view.data != nullptr || view.tokens * view.heads * view.head_dim == 0, place, ": ", name,
          ".data is null but its size is (", view.tokens, ", ", view.heads, ", ", view.head_dim,
          ")");
}

/// True when rows of `width` elements at token * token_stride + head * head_stride never overlap.
/// Strides of either sign and any interleaving are judged exactly. O(heads).
constexpr bool rows_are_disjoint(
    index_t tokens, index_t heads, index_t width, index_t token_stride, index_t head_stride) {
  const auto magnitude = [](index_t x) { return x < 0 ? -x : x; };
  if (tokens == 0 || heads == 0 || width == 0) return true;
  if (tokens > 1 && magnitude(token_stride) < width) return false;
  for (index_t head = 1; head < heads; ++head) {
    // Of the rows of this head, those beside row (0, 0): some pair is as close when any pair is.
    const index_t distance = head * head_stride;
    const index_t steps = tokens > 1 ? distance / token_stride : 0;
    for (const index_t step : {steps - 1, steps, steps + 1}) {
      if (magnitude(step) < tokens && magnitude(distance - step * token_stride) < width)
        return false;
    }
  }
  return true;
}

/// Additionally refuses strides with which rows of an output would overlap.
template <class Place, class T>
void check_output_view(const Place& place, const char* name, const heads_view<T>& view) {
  check_view(place, name, view);
  require(rows_are_disjoint(view.tokens, view.heads, view.head_dim, view.token_stride,
                            view.head_stride),
          place, ": rows of ", name, " overlap: head_dim ", view.head_dim, ", token_stride ",
          view.token_stride, ", head_stride ", view.head_stride);
}

template <class Place, class T>
void check_lse_view(const Place& place, const lse_view<T>& lse, index_t tokens, index_t heads) {
  if (!lse) return;
  require(lse.tokens == tokens && lse.heads == heads, place, ": lse is (", lse.tokens, ", ",
          lse.heads, ") but there are (", tokens, ", ", heads, ") query tokens and heads");
  if constexpr (!std::is_const_v<T>) {  // an output
    require(rows_are_disjoint(tokens, heads, 1, lse.token_stride, lse.head_stride), place,
            ": entries of lse overlap: token_stride ", lse.token_stride, ", head_stride ",
            lse.head_stride);
  }
}

inline void check_options(const char* function, const attention_options& options) {
  require(!options.scale || std::isfinite(*options.scale), function,
          ": options.scale is not finite");
  require(std::isfinite(options.softcap) && options.softcap >= 0, function, ": options.softcap is ",
          options.softcap, ", must be finite and >= 0");
}

template <class C>
void check_sink_logits(const char* function, std::span<const C> sink_logits, index_t query_heads) {
  const auto count = static_cast<index_t>(sink_logits.size());
  require(count == 0 || count == query_heads, function, ": ", count, " sink_logits for ",
          query_heads, " query heads");
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

/// Tensors against each other. The caller checks them against the axes of its mask or plan.
template <class Q, class K, class V, class O>
void check_forward(const char* function,
                   const forward_arguments<Q, K, V, O>& arguments,
                   const attention_options& options) {
  check_view(function, "q", arguments.q);
  check_view(function, "k", arguments.k);
  check_view(function, "v", arguments.v);
  check_output_view(function, "o", arguments.o);
  check_heads(function, arguments.q, arguments.k, arguments.v, arguments.o);
  check_lse_view(function, arguments.lse, arguments.q.tokens, arguments.q.heads);
  check_sink_logits(function, arguments.sink_logits, arguments.q.heads);
  check_options(function, options);
}

/// A head's scale factor: the option, or 1 / sqrt(head_dim).
inline double resolved_scale(const attention_options& options, index_t head_dim) noexcept {
  return options.scale ? *options.scale : 1.0 / std::sqrt(static_cast<double>(head_dim));
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
