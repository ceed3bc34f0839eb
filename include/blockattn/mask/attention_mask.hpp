// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/mask/slice.hpp>
#include <tuple>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// Who sees whom: disjoint slices over a (query tokens x key tokens) rectangle. Pure data, never n
/// x n. Built by the functions of `mask/`; hand-made slices enter through `mask_from_slices`, which
/// checks them.
class attention_mask {
 public:
  attention_mask() = default;

  index_t query_tokens() const noexcept { return query_tokens_; }
  index_t key_tokens() const noexcept { return key_tokens_; }

  /// Disjoint, non-empty and trimmed (each query of a slice sees a key through it), ordered by
  /// (queries.begin, keys.begin, lower).
  const std::vector<slice>& slices() const noexcept { return slices_; }

  /// For builders that know their slices to be disjoint and inside the rectangle: trims, drops
  /// empty ones and sorts. O(slices log slices).
  static attention_mask from_disjoint_slices(index_t query_tokens,
                                             index_t key_tokens,
                                             std::vector<slice> slices) {
    attention_mask mask;
    mask.query_tokens_ = query_tokens;
    mask.key_tokens_ = key_tokens;
    for (slice& s : slices) s = trimmed(s);
    std::erase_if(slices, [](const slice& s) { return s.queries.empty(); });
    const auto in_order = [](const slice& a, const slice& b) {
      return std::tuple(a.queries.begin, a.keys.begin, a.lower) <
             std::tuple(b.queries.begin, b.keys.begin, b.lower);
    };
    // Builders mostly go from row to row.
    if (!std::is_sorted(slices.begin(), slices.end(), in_order)) {
      std::sort(slices.begin(), slices.end(), in_order);
    }
    mask.slices_ = std::move(slices);
    return mask;
  }

  /// True when query sees key. O(slices).
  bool visible(index_t query, index_t key) const noexcept {
    for (const slice& s : slices_) {
      if (s.contains(query, key)) return true;
    }
    return false;
  }

 private:
  index_t query_tokens_ = 0;
  index_t key_tokens_ = 0;
  std::vector<slice> slices_;
};

/// The mask with queries and keys exchanged, as a backward pass by key column needs it.
/// O(slices log slices).
inline attention_mask transposed(const attention_mask& mask) {
  std::vector<slice> slices;
  slices.reserve(mask.slices().size());
  for (const slice& s : mask.slices()) slices.push_back(s.transposed());
  return attention_mask::from_disjoint_slices(mask.key_tokens(), mask.query_tokens(),
                                              std::move(slices));
}

/// The number of (query, key) pairs that see each other, exactly. O(slices).
inline index_t visible_pairs(const attention_mask& mask) noexcept {
  index_t pairs = 0;
  for (const slice& s : mask.slices()) pairs += visible_pairs(s);
  return pairs;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
