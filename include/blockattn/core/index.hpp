// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/config.hpp>
#include <cstdint>
#include <limits>

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

namespace detail {

/// What a size is that does not fit index_t: no memory has so many bytes, so that whoever compares
/// it with what there is refuses it.
inline constexpr index_t too_large = std::numeric_limits<index_t>::max();

/// a * b for a, b >= 0, `too_large` where that does not fit.
constexpr index_t saturating_multiply(index_t a, index_t b) noexcept {
  if ((a | b) >> 31 == 0) return a * b;  // most often, and without the division
  return b != 0 && a > too_large / b ? too_large : a * b;
}

template <class... Factors>
constexpr index_t saturating_multiply(index_t a, index_t b, Factors... rest) noexcept {
  return saturating_multiply(saturating_multiply(a, b), rest...);
}

/// a + b for a, b >= 0, `too_large` where that does not fit.
constexpr index_t saturating_add(index_t a, index_t b) noexcept {
  return a > too_large - b ? too_large : a + b;
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
