// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/mask/attention_mask.hpp>
#include <blockattn/plan/tile_lists.hpp>
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

  /// Bytes of memory that the plan holds, for engines that keep plans.
  index_t memory_size() const noexcept {
    return static_cast<index_t>(sizeof(*this) + slices_.capacity() * sizeof(slice) +
                                seen_keys_.capacity() * sizeof(index_range)) +
           by_query_.memory_size() + by_key_.memory_size();
  }

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
