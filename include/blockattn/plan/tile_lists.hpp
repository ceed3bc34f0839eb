// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/config.hpp>
#include <blockattn/core/index.hpp>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// A run of non-empty tiles [inner_begin, inner_end) of an outer tile: all full, or all partial and
/// met by the same slices. Empty tiles have no span. 32-bit on purpose: plans of long inputs stay
/// in cache.
struct tile_span {
  std::int32_t inner_begin = 0;   ///< first inner tile
  std::int32_t inner_end = 0;     ///< one past the last inner tile
  std::int32_t slices_begin = 0;  ///< into tile_lists::slice_ids; equal to slices_end when full
  std::int32_t slices_end = 0;

  constexpr bool is_full() const noexcept { return slices_begin == slices_end; }
  constexpr index_t tiles() const noexcept { return index_t{inner_end} - inner_begin; }
  friend constexpr bool operator==(const tile_span&, const tile_span&) = default;
};

/// From outer tile `outer` on, until the next link of the same span, the span is followed by span
/// `next`; -1: by none.
struct span_link {
  std::int32_t outer = 0;
  std::int32_t next = -1;
};

class tile_span_range;

/// The non-empty tiles along one direction: for each outer tile, spans of inner tiles in increasing
/// order. By query row the outer axis is queries and the inner one keys; the transposed lists
/// exchange them.
///
/// Neighbouring outer tiles mostly have most of their spans in common, and a span is stored once
/// for all of them: the lists are as long as what changes from one outer tile to the next. The
/// spans of one outer tile are therefore a chain, not an array: read them through `spans_of`.
/// (Driscoll, Sarnak, Sleator and Tarjan, "Making data structures persistent", 1989: fat nodes.)
struct tile_lists {
  index_t outer_tiles = 0;
  std::vector<std::int32_t> first_span;  ///< (outer_tiles) -1 for an outer tile without tiles
  std::vector<tile_span> spans;
  std::vector<std::int32_t> first_link;  ///< (spans + 1) offsets into links
  std::vector<span_link> links;          ///< of each span by outer; without: span s + 1 follows s
  std::vector<std::int32_t> slice_ids;   ///< into tile_plan::slices()
  std::vector<std::int64_t> tile_count;  ///< (outer_tiles) non-empty tiles of each outer tile
  std::vector<std::int32_t> order;       ///< (outer_tiles) most tiles first, then lower index first

  /// The spans of one outer tile, a forward range of `const tile_span`.
  tile_span_range spans_of(index_t outer) const noexcept;

  std::span<const std::int32_t> slices_of(const tile_span& span) const noexcept {
    return {slice_ids.data() + span.slices_begin,
            static_cast<std::size_t>(span.slices_end - span.slices_begin)};
  }

  /// Number of the span that follows `span` in the chain of `outer`, -1 behind the last.
  /// O(log links of the span).
  std::int32_t next_span(std::int32_t span, std::int32_t outer) const noexcept {
    const auto s = static_cast<std::size_t>(span);
    const span_link* const begin = links.data() + first_link[s];
    const span_link* const end = links.data() + first_link[s + 1];
    if (begin == end) return span + 1;
    const span_link* const later = std::partition_point(
        begin, end, [outer](const span_link& link) { return link.outer <= outer; });
    return later == begin ? span + 1 : later[-1].next;
  }

  /// Bytes of memory that the lists hold.
  index_t memory_size() const noexcept {
    const auto bytes = [](const auto& values) {
      return static_cast<index_t>(values.capacity() * sizeof(values[0]));
    };
    return bytes(first_span) + bytes(spans) + bytes(first_link) + bytes(links) + bytes(slice_ids) +
           bytes(tile_count) + bytes(order);
  }
};

class tile_span_iterator {
 public:
  using value_type = tile_span;
  using difference_type = std::ptrdiff_t;
  using reference = const tile_span&;
  using pointer = const tile_span*;
  using iterator_category = std::forward_iterator_tag;

  tile_span_iterator() = default;
  tile_span_iterator(const tile_lists& lists, std::int32_t span, std::int32_t outer) noexcept
      : lists_(&lists), span_(span), outer_(outer) {}

  reference operator*() const noexcept { return lists_->spans[static_cast<std::size_t>(span_)]; }
  pointer operator->() const noexcept { return &**this; }
  tile_span_iterator& operator++() noexcept {
    span_ = lists_->next_span(span_, outer_);
    return *this;
  }
  tile_span_iterator operator++(int) noexcept {
    const tile_span_iterator before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const tile_span_iterator&, const tile_span_iterator&) = default;

 private:
  const tile_lists* lists_ = nullptr;
  std::int32_t span_ = -1;
  std::int32_t outer_ = 0;
};

/// The spans of one outer tile. A view: the lists must outlive it.
class tile_span_range {
 public:
  tile_span_range(const tile_lists& lists, std::int32_t first, std::int32_t outer) noexcept
      : begin_(lists, first, outer), end_(lists, -1, outer) {}

  tile_span_iterator begin() const noexcept { return begin_; }
  tile_span_iterator end() const noexcept { return end_; }
  bool empty() const noexcept { return begin_ == end_; }

 private:
  tile_span_iterator begin_;
  tile_span_iterator end_;
};

inline tile_span_range tile_lists::spans_of(index_t outer) const noexcept {
  return {*this, first_span[static_cast<std::size_t>(outer)], static_cast<std::int32_t>(outer)};
}

}  // namespace blockattn::inline BLOCKATTN_ABI
