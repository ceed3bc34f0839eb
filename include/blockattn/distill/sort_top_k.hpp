// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <blockattn/core/error.hpp>
#include <blockattn/core/index.hpp>
#include <cstdint>
#include <limits>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace blockattn::inline BLOCKATTN_ABI {

/// Sorts each row of k (id, log-probability) pairs by id, as top_k_teacher wants them; selections
/// by probability come in another order. Throws `error` unless both spans hold whole rows and
/// equally many. O(tokens * k log k); allocates one row.
template <class C = float>
void sort_top_k(index_t k,
                std::span<std::int32_t> ids,
                std::type_identity_t<std::span<C>> log_probabilities) {
  detail::require(0 < k && k <= std::numeric_limits<std::int32_t>::max(), "sort_top_k: k is ", k,
                  ", must be in [1, 2147483647]: ids fit 32 bits");
  const auto count = static_cast<index_t>(ids.size());
  detail::require(count % k == 0 && log_probabilities.size() == ids.size(),
                  "sort_top_k: ", ids.size(), " ids and ", log_probabilities.size(),
                  " log-probabilities, not rows of k = ", k, " each");
  if (ids.empty()) return;
  std::vector<std::pair<std::int32_t, C>> row(static_cast<std::size_t>(k));
  for (std::size_t begin = 0; begin < ids.size(); begin += row.size()) {
    for (std::size_t i = 0; i < row.size(); ++i)
      row[i] = {ids[begin + i], log_probabilities[begin + i]};
    std::sort(row.begin(), row.end());
    for (std::size_t i = 0; i < row.size(); ++i)
      std::tie(ids[begin + i], log_probabilities[begin + i]) = row[i];
  }
}

}  // namespace blockattn::inline BLOCKATTN_ABI
