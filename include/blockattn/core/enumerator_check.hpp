// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/error.hpp>
#include <cstdint>

namespace blockattn::inline BLOCKATTN_ABI::detail {

/// Refuses a number that was cast to an enumeration and names none of its enumerators, which count
/// from 0 to `last`.
template <class Place, class Enum>
constexpr void check_enumerator(const Place& place, const char* name, Enum value, Enum last) {
  const auto number = static_cast<std::int64_t>(value);
  require(0 <= number && number <= static_cast<std::int64_t>(last), place, ": ", name, " is ",
          number, ", not one of its enumerators 0 to ", static_cast<std::int64_t>(last));
}

}  // namespace blockattn::inline BLOCKATTN_ABI::detail
