// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/config.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI {

/// Every count, index, stride and offset: signed 64-bit, so differences need no cast.
using index_t = std::int64_t;

/// ceil(value / divisor) for value >= 0 and divisor > 0.
constexpr index_t ceil_divide(index_t value, index_t divisor) noexcept {
  return value / divisor + (value % divisor != 0 ? 1 : 0);  // the sum could overflow
}

/// The smallest multiple of `multiple` that is >= value, for value >= 0 and multiple > 0.
constexpr index_t round_up(index_t value, index_t multiple) noexcept {
  return ceil_divide(value, multiple) * multiple;
}

}  // namespace blockattn::inline BLOCKATTN_ABI
