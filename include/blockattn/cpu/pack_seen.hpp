// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/cpu/pack.hpp>
#include <blockattn/plan/plan_set.hpp>

/// \file
/// Rows that meet weights of 0 where a query does not see them: those of keys that no query sees
/// may hold NaN and are never packed.

namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail {

/// True when every plan of the set has each key seen by some query.
inline bool every_key_is_seen(const plan_set& plans) noexcept {
  for (const tile_plan& plan : plans.plans()) {
    const auto& seen = plan.seen_keys();
    if (plan.key_tokens() > 0 && (seen.size() != 1 || seen[0] != index_range{0, plan.key_tokens()}))
      return false;
  }
  return true;
}

/// pack_values for the keys of `keys` that one of the query heads `heads` sees; the places of the
/// others stay as they are. O(log runs + runs that meet the keys) a plan, and the copies.
template <class Panel, class Arch, class T>
inline void pack_seen_values(const plan_set& plans,
                             const index_range& heads,
                             const heads_view<const T>& v,
                             index_t kv_head,
                             const index_range& keys,
                             index_t origin,
                             index_t panel_steps,
                             Panel* out) noexcept {
  for (index_t head = heads.begin; head < heads.end; ++head) {
    if (is_planned_before(plans, head, heads.begin)) continue;
    const std::vector<index_range>& seen = plans.of_head(head).seen_keys();
    auto run = std::partition_point(seen.begin(), seen.end(),
                                    [&](const index_range& r) { return r.end <= keys.begin; });
    for (; run != seen.end() && run->begin < keys.end; ++run) {
      pack_values<Panel, Arch>(v, kv_head, intersect(*run, keys), origin, panel_steps, out);
    }
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI::cpu::inline BLOCKATTN_CPU_ABI::detail
