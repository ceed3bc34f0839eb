// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/index.hpp>

namespace blockattn::inline BLOCKATTN_ABI {

/// A half-open run of indices [begin, end); empty when begin >= end.
struct index_range {
  index_t begin = 0;
  index_t end = 0;

  constexpr index_t size() const noexcept { return end > begin ? end - begin : 0; }
  constexpr bool empty() const noexcept { return end <= begin; }
  constexpr bool contains(index_t index) const noexcept { return begin <= index && index < end; }
  friend constexpr bool operator==(const index_range&, const index_range&) = default;
};

/// The common part of two ranges (possibly empty).
constexpr index_range intersect(const index_range& a, const index_range& b) noexcept {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

}  // namespace blockattn::inline BLOCKATTN_ABI
