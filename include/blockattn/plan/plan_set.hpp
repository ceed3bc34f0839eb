// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <blockattn/plan/tile_plan.hpp>
#include <span>
#include <string_view>

namespace blockattn::inline BLOCKATTN_ABI {

/// Plans per query head: `plans[head_to_plan[head]]`, or one plan for all heads. A view: the plans
/// must outlive it. Accepted wherever a plan is; verbs pass it through `check_plan_set` first.
class plan_set {
 public:
  plan_set(const tile_plan& plan) noexcept
      : plans_(&plan, 1) {}  // NOLINT: one plan serves as a set
  plan_set(std::span<const tile_plan> plans, std::span<const index_t> head_to_plan) noexcept
      : plans_(plans), head_to_plan_(head_to_plan) {}

  std::span<const tile_plan> plans() const noexcept { return plans_; }
  std::span<const index_t> head_to_plan() const noexcept { return head_to_plan_; }
  index_t plan_index(index_t head) const noexcept {
    return head_to_plan_.empty() ? 0 : head_to_plan_[static_cast<std::size_t>(head)];
  }
  const tile_plan& of_head(index_t head) const noexcept {
    return plans_[static_cast<std::size_t>(plan_index(head))];
  }

 private:
  std::span<const tile_plan> plans_;
  std::span<const index_t> head_to_plan_;
};

namespace detail {

/// True when one of the heads [first_head, head) has the plan of `head`.
inline bool is_planned_before(const plan_set& plans, index_t head, index_t first_head) noexcept {
  for (index_t other = first_head; other < head; ++other) {
    if (plans.plan_index(other) == plans.plan_index(head)) return true;
  }
  return false;
}

}  // namespace detail

/// Checks that every query head has a plan of the right size: at least one plan, all of them over
/// (query_tokens x key_tokens), and either one plan for all heads or one valid entry of
/// head_to_plan per query head. Throws `error`, naming `caller`. O(plans + query_heads).
inline void check_plan_set(const plan_set& set,
                           index_t query_heads,
                           index_t query_tokens,
                           index_t key_tokens,
                           std::string_view caller) {
  const auto plans = static_cast<index_t>(set.plans().size());
  const auto entries = static_cast<index_t>(set.head_to_plan().size());
  detail::require(plans > 0, caller, ": the plan set holds no plan");
  if (entries == 0) {
    detail::require(plans == 1 || query_heads == 0, caller, ": the plan set holds ", plans,
                    " plans but head_to_plan is empty; it must name the plan of each of the ",
                    query_heads, " query heads");
  } else {
    detail::require(entries == query_heads, caller, ": head_to_plan has ", entries, " entries for ",
                    query_heads, " query heads");
  }
  for (index_t head = 0; head < entries; ++head) {
    const index_t plan = set.plan_index(head);
    detail::require(0 <= plan && plan < plans, caller, ": head_to_plan[", head, "] is ", plan,
                    ", must be in [0, ", plans, ")");
  }
  for (index_t i = 0; i < plans; ++i) {
    const tile_plan& plan = set.plans()[static_cast<std::size_t>(i)];
    detail::require(plan.query_tokens() == query_tokens && plan.key_tokens() == key_tokens, caller,
                    ": plan ", i, " is for ", plan.query_tokens(), " queries x ", plan.key_tokens(),
                    " keys, the arguments have ", query_tokens, " x ", key_tokens);
  }
}

/// Checks that every plan also lists its tiles by key. Throws `error`, naming `caller`. O(plans).
inline void check_transposed(const plan_set& set, std::string_view caller) {
  for (std::size_t i = 0; i < set.plans().size(); ++i) {
    detail::require(set.plans()[i].has_transposed(), caller, ": plan ", i,
                    " has no transposed tile lists; build it with {.transposed = true}");
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI
