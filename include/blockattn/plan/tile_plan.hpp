// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

namespace detail {
class tile_plan_builder;
}

/// Queries x keys processed at once.
struct tile_shape {
  index_t queries = 0;
  index_t keys = 0;
  friend constexpr bool operator==(const tile_shape&, const tile_shape&) = default;
};

/// A run of non-empty tiles of one outer tile: full tiles [inner_begin, inner_end), or one partial
/// tile with the slices that meet it. Empty tiles have no span. 32-bit on purpose: plans of long
/// inputs stay in cache.
struct tile_span {
  std::int32_t inner_begin = 0;   ///< first inner tile
  std::int32_t inner_end = 0;     ///< one past the last inner tile
  std::int32_t slices_begin = 0;  ///< into tile_lists::slice_ids; equal to slices_end when full
  std::int32_t slices_end = 0;

  constexpr bool is_full() const noexcept { return slices_begin == slices_end; }
};

/// The non-empty tiles along one direction: for each outer tile, spans of inner tiles in increasing
/// order. By query row the outer axis is queries and the inner one keys; the transposed lists
/// exchange them.
struct tile_lists {
  index_t outer_tiles = 0;
  std::vector<std::int64_t> span_begin;  ///< (outer_tiles + 1) offsets into spans
  std::vector<tile_span> spans;
  std::vector<std::int32_t> slice_ids;   ///< into tile_plan::slices()
  std::vector<std::int64_t> tile_count;  ///< (outer_tiles) non-empty tiles of each outer tile
  std::vector<std::int32_t> order;       ///< (outer_tiles) most tiles first, then lower index first

  std::span<const tile_span> spans_of(index_t outer) const noexcept {
    const auto begin = static_cast<std::size_t>(span_begin[static_cast<std::size_t>(outer)]);
    const auto end = static_cast<std::size_t>(span_begin[static_cast<std::size_t>(outer) + 1]);
    return {spans.data() + begin, end - begin};
  }
  std::span<const std::int32_t> slices_of(const tile_span& span) const noexcept {
    return {slice_ids.data() + span.slices_begin,
            static_cast<std::size_t>(span.slices_end - span.slices_begin)};
  }
};

/// Counts over a whole plan.
struct tile_statistics {
  index_t visible_pairs = 0;
  index_t full_tiles = 0;
  index_t partial_tiles = 0;
  index_t empty_tiles = 0;
  /// Pairs inside the non-empty tiles, clipped to the axes; >= visible_pairs.
  index_t tile_area = 0;
};

/// The non-empty tiles of a mask, each full or partial. Immutable and free of references: share it
/// between threads, layers and heads.
class tile_plan {
 public:
  tile_plan() = default;

  index_t query_tokens() const noexcept { return query_tokens_; }
  index_t key_tokens() const noexcept { return key_tokens_; }
  const tile_shape& shape() const noexcept { return shape_; }
  const std::vector<slice>& slices() const noexcept { return slices_; }
  const tile_lists& by_query() const noexcept { return by_query_; }
  bool has_transposed() const noexcept { return has_transposed_; }
  /// Outer tiles of keys, inner tiles of queries. Empty unless asked for.
  const tile_lists& by_key() const noexcept { return by_key_; }
  const tile_statistics& statistics() const noexcept { return statistics_; }
  /// Sorted disjoint runs of the keys that at least one query sees; the memory of all other keys is
  /// never used.
  const std::vector<index_range>& seen_keys() const noexcept { return seen_keys_; }

  index_range query_tile(index_t tile) const noexcept {
    return {tile * shape_.queries, std::min(query_tokens_, (tile + 1) * shape_.queries)};
  }
  index_range key_tile(index_t tile) const noexcept {
    return {tile * shape_.keys, std::min(key_tokens_, (tile + 1) * shape_.keys)};
  }

 private:
  friend class detail::tile_plan_builder;
  index_t query_tokens_ = 0;
  index_t key_tokens_ = 0;
  tile_shape shape_;
  std::vector<slice> slices_;
  tile_lists by_query_;
  tile_lists by_key_;
  bool has_transposed_ = false;
  tile_statistics statistics_;
  std::vector<index_range> seen_keys_;
};

}  // namespace blockattn::inline BLOCKATTN_ABI
