// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/mask/slice.hpp>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Sorts ranges and joins those that overlap or touch.
inline void join_runs(std::vector<index_range>& ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const index_range& a, const index_range& b) { return a.begin < b.begin; });
  std::size_t runs = 0;
  for (const index_range& range : ranges) {
    if (runs == 0 || ranges[runs - 1].end < range.begin) {
      ranges[runs++] = range;
    } else {
      ranges[runs - 1].end = std::max(ranges[runs - 1].end, range.end);
    }
  }
  ranges.resize(runs);
}

/// Disjoint, sorted, maximal runs of the keys that at least one query sees through trimmed slices.
/// O(n log n) for n slices, O(n log runs) where most see keys that slices before them see.
inline std::vector<index_range> seen_key_runs(const std::vector<slice>& slices) {
  constexpr std::size_t fewest = 1024;
  std::vector<index_range> runs;  // `known` joined ones, then what they do not hold
  std::size_t known = 0;
  for (const slice& s : slices) {
    const auto end = runs.begin() + static_cast<std::ptrdiff_t>(known);
    const auto run = std::partition_point(
        runs.begin(), end, [&s](const index_range& r) { return r.end < s.keys.end; });
    if (run != end && run->begin <= s.keys.begin) continue;
    runs.push_back(s.keys);
    if (runs.size() < 2 * known + fewest) continue;
    join_runs(runs);
    known = runs.size();
  }
  join_runs(runs);
  runs.shrink_to_fit();
  return runs;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
