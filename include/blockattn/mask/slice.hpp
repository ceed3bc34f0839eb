// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/range.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// Band limits that never cut: |key - query| stays far below them and sums with an index cannot
/// overflow.
inline constexpr index_t no_lower_diagonal = -(index_t{1} << 62);
inline constexpr index_t no_upper_diagonal = index_t{1} << 62;

/// A rectangle of (query, key) pairs intersected with a diagonal band, in token indices:
/// the pairs with query in `queries`, key in `keys` and `lower <= key - query <= upper`.
/// Causal is `upper = 0`; a window of w keys is `lower = 1 - w`. Limits lie in
/// [no_lower_diagonal, no_upper_diagonal]; lower > upper is an empty slice.
struct slice {
  index_range queries;
  index_range keys;
  index_t lower = no_lower_diagonal;
  index_t upper = no_upper_diagonal;

  constexpr bool contains(index_t query, index_t key) const noexcept {
    return queries.contains(query) && keys.contains(key) && lower <= key - query &&
           key - query <= upper;
  }

  /// The keys that `query` sees through this slice: one interval, possibly empty. `query` must lie
  /// in `queries`.
  constexpr index_range keys_of(index_t query) const noexcept {
    return {std::max(keys.begin, query + lower), std::min(keys.end, query + upper + 1)};
  }

  /// The same pairs with the roles of query and key exchanged.
  constexpr slice transposed() const noexcept { return {keys, queries, -upper, -lower}; }

  friend constexpr bool operator==(const slice&, const slice&) = default;
};

/// The part of a slice inside a rectangle: slices are closed under cutting.
constexpr slice cut(const slice& s, const index_range& queries, const index_range& keys) noexcept {
  return {intersect(s.queries, queries), intersect(s.keys, keys), s.lower, s.upper};
}

/// The pairs that two slices have in common: slices are closed under intersection.
constexpr slice intersect(const slice& a, const slice& b) noexcept {
  return {intersect(a.queries, b.queries), intersect(a.keys, b.keys), std::max(a.lower, b.lower),
          std::min(a.upper, b.upper)};
}

/// The same pairs in the smallest rectangle: every query left in `queries` sees a key through the
/// slice and every key left in `keys` is seen. Both are empty when the slice is.
constexpr slice trimmed(const slice& s) noexcept {
  if (s.keys.empty() || s.lower > s.upper) return {{}, {}, s.lower, s.upper};
  const index_range queries = intersect(s.queries, {s.keys.begin - s.upper, s.keys.end - s.lower});
  if (queries.empty()) return {{}, {}, s.lower, s.upper};
  return {queries, intersect(s.keys, {queries.begin + s.lower, queries.end + s.upper}), s.lower,
          s.upper};
}

/// The slice moved along both axes: (query, key) becomes (query + by_query, key + by_key). Limits
/// that never cut stay so.
constexpr slice shifted(const slice& s, index_t by_query, index_t by_key) noexcept {
  const index_t drift = by_key - by_query;
  return {{s.queries.begin + by_query, s.queries.end + by_query},
          {s.keys.begin + by_key, s.keys.end + by_key},
          s.lower == no_lower_diagonal ? s.lower : s.lower + drift,
          s.upper == no_upper_diagonal ? s.upper : s.upper + drift};
}

namespace detail {

/// sum over t in [0, count) of clamp(first + t, 0, cap): pairs on one side of a diagonal. O(1).
constexpr index_t clamped_ramp_sum(index_t first, index_t count, index_t cap) noexcept {
  if (count <= 0 || cap <= 0) return 0;
  const index_t rising = std::clamp<index_t>(-first, 0, count);  // rows still at 0
  const index_t capped =
      std::clamp<index_t>(cap - first, 0, count);  // rows before the cap is reached
  const index_t n = capped - rising;
  return n * (first + rising) + n * (n - 1) / 2 + (count - capped) * cap;
}

}  // namespace detail

/// Visible pairs of a slice, exactly, in O(1): pairs at or below the upper diagonal minus pairs
/// below the lower one.
constexpr index_t visible_pairs(const slice& s) noexcept {
  const index_t rows = s.queries.size();
  const index_t columns = s.keys.size();
  if (rows == 0 || columns == 0 || s.lower > s.upper) return 0;
  // Row q sees keys up to q + upper: clamp(q + upper + 1 - keys.begin, 0, columns) of them;
  // likewise below lower.
  const index_t up_to_upper =
      detail::clamped_ramp_sum(s.queries.begin + s.upper + 1 - s.keys.begin, rows, columns);
  const index_t below_lower =
      detail::clamped_ramp_sum(s.queries.begin + s.lower - s.keys.begin, rows, columns);
  return up_to_upper - below_lower;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
