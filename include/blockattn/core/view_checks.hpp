// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/heads_view.hpp>

/// \file
/// What every function that takes views refuses. `place` opens the sentence: the public name of the
/// function, or anything that append_part takes; it becomes text only when a check fails.

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

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
