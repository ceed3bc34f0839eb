// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/core/heads_view.hpp>

/// \file
/// What every function that takes views refuses. `place` opens the sentence: the public name of the
/// function, or anything that append_part takes; it becomes text only when a check fails.

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// True when a tensor of rows of `row_bytes` bytes spans less than 2^62 bytes, so that no offset
/// into it overflows. Strides in bytes, of any sign; those of an axis with one row do not count.
constexpr bool extent_is_addressable(index_t tokens,
                                     index_t token_stride,
                                     index_t heads,
                                     index_t head_stride,
                                     index_t columns,
                                     index_t element_bytes) noexcept {
  constexpr index_t limit = index_t{1} << 62;
  const auto length = [](index_t rows, index_t stride) {
    if (rows <= 1) return index_t{0};
    if (stride == std::numeric_limits<index_t>::min()) return too_large;
    return saturating_multiply(rows - 1, stride < 0 ? -stride : stride);
  };
  const index_t elements = saturating_add(
      saturating_add(length(tokens, token_stride), length(heads, head_stride)), columns);
  return saturating_multiply(elements, element_bytes) < limit;
}

/// Strides lead to addresses.
template <class Place>
void check_extent(const Place& place,
                  const char* name,
                  index_t tokens,
                  index_t token_stride,
                  index_t heads,
                  index_t head_stride,
                  index_t columns,
                  index_t element_bytes) {
  if (tokens == 0 || heads == 0 || columns == 0) return;
  require(extent_is_addressable(tokens, token_stride, heads, head_stride, columns, element_bytes),
          place, ": ", name, " spans more than 2^62 bytes: size (", tokens, ", ", heads, ", ",
          columns, "), strides ", token_stride, " (tokens) and ", head_stride, " (heads)");
}

/// No stride of an input is 0 by oversight.
template <class Place, class View>
void check_input_strides(const Place& place, const char* name, const View& view) {
  if (view.broadcast || view.tokens == 0 || view.heads == 0) return;
  require(
      (view.tokens == 1 || view.token_stride != 0) && (view.heads == 1 || view.head_stride != 0),
      place, ": ", name, " has strides ", view.token_stride, " (tokens) and ", view.head_stride,
      " (heads) for ", view.tokens, " tokens and ", view.heads,
      " heads; set them (token_major and head_major do), or broadcast = true where one row is "
      "meant for all");
}

/// Whether a call's tensors have their memory: not yet where only its workspace is measured.
enum class memory_state { allocated, not_yet };

/// Sizes are not negative and lead to addresses, and a view with elements has memory.
template <class Place, class T>
void check_memory_of(const Place& place,
                     const char* name,
                     const heads_view<T>& view,
                     memory_state memory) {
  require(view.tokens >= 0 && view.heads >= 0 && view.head_dim >= 0, place, ": ", name,
          " has negative size (", view.tokens, ", ", view.heads, ", ", view.head_dim, ")");
  const bool is_empty = view.tokens == 0 || view.heads == 0 || view.head_dim == 0;
  require(view.data != nullptr || is_empty || memory == memory_state::not_yet, place, ": ", name,
          ".data is null but its size is (", view.tokens, ", ", view.heads, ", ", view.head_dim,
          ")");
  check_extent(place, name, view.tokens, view.token_stride, view.heads, view.head_stride,
               view.head_dim, sizeof(T));
}

/// An input that can be read.
template <class Place, class T>
void check_view(const Place& place,
                const char* name,
                const heads_view<T>& view,
                memory_state memory = memory_state::allocated) {
  check_memory_of(place, name, view, memory);
  if (view.head_dim > 0) check_input_strides(place, name, view);
}

/// True when rows of `width` elements at token * token_stride + head * head_stride never overlap.
/// Strides of either sign and any interleaving are judged exactly; more than 2^20 heads that are
/// interleaved with tokens count as overlapping. O(1) where one axis lies within a step of the
/// other, else O(heads).
constexpr bool rows_are_disjoint(
    index_t tokens, index_t heads, index_t width, index_t token_stride, index_t head_stride) {
  const auto magnitude = [](index_t x) { return x < 0 ? -x : x; };
  if (tokens == 0 || heads == 0 || width == 0) return true;
  const index_t token_step = tokens > 1 ? magnitude(token_stride) : width;
  const index_t head_step = heads > 1 ? magnitude(head_stride) : width;
  if (token_step < width || head_step < width) return false;
  if ((heads - 1) * head_step + width <= token_step || tokens == 1) return true;
  if ((tokens - 1) * token_step + width <= head_step || heads == 1) return true;
  if (heads > index_t{1} << 20) return false;
  for (index_t head = 1; head < heads; ++head) {
    // Of the rows of this head, those beside row (0, 0): some pair is as close when any pair is.
    const index_t distance = head * head_stride;
    const index_t steps = distance / token_stride;
    for (const index_t step : {steps - 1, steps, steps + 1}) {
      if (magnitude(step) < tokens && magnitude(distance - step * token_stride) < width)
        return false;
    }
  }
  return true;
}

/// An output that can be written: its rows do not overlap.
template <class Place, class T>
void check_output_view(const Place& place,
                       const char* name,
                       const heads_view<T>& view,
                       memory_state memory = memory_state::allocated) {
  check_memory_of(place, name, view, memory);
  require(rows_are_disjoint(view.tokens, view.heads, view.head_dim, view.token_stride,
                            view.head_stride),
          place, ": rows of ", name, " overlap: head_dim ", view.head_dim, ", token_stride ",
          view.token_stride, ", head_stride ", view.head_stride);
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
