// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/mask/slice.hpp>
#include <cstdint>
#include <span>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// The slices that meet one partial tile, by number.
struct tile_slices {
  const std::vector<slice>* all = nullptr;
  std::span<const std::int32_t> ids;
};

/// Calls f(run) for each run of keys inside `keys` that `query` sees, unordered.
template <class F>
inline void for_each_run(const tile_slices& slices,
                         index_t query,
                         const index_range& keys,
                         const F& f) {
  for (const std::int32_t id : slices.ids) {
    const slice& s = (*slices.all)[static_cast<std::size_t>(id)];
    if (!s.queries.contains(query)) continue;
    const index_range run = intersect(s.keys_of(query), keys);
    if (!run.empty()) f(run);
  }
}

/// The smallest range that holds every key of `keys` seen by one of `queries`; empty when there is
/// none.
inline index_range reach(const tile_slices& slices,
                         const index_range& queries,
                         const index_range& keys) {
  index_range all{keys.end, keys.begin};
  for (index_t query = queries.begin; query < queries.end; ++query) {
    for_each_run(slices, query, keys, [&](const index_range& run) {
      all = {std::min(all.begin, run.begin), std::max(all.end, run.end)};
    });
  }
  return all;
}

/// The runs of one row in increasing order, into `runs` (room for keys.size() of them). Returns
/// their number. Slices are disjoint, so runs never overlap; insertion keeps the usual one or two
/// free of cost.
inline index_t sorted_runs(const tile_slices& slices,
                           index_t query,
                           const index_range& keys,
                           index_range* runs) {
  index_t count = 0;
  for_each_run(slices, query, keys, [&](const index_range& run) {
    index_t at = count++;
    for (; at > 0 && runs[at - 1].begin > run.begin; --at) runs[at] = runs[at - 1];
    runs[at] = run;
  });
  return count;
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail
