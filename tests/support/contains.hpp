// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "support/catch.hpp"

namespace blockattn_test {

/// Matches a text that contains `part`; Catch2 3 renamed Catch2 2's matcher.
inline auto contains(const std::string& part) {
#if __has_include(<catch2/catch_all.hpp>)
  return Catch::Matchers::ContainsSubstring(part);
#else
  return Catch::Matchers::Contains(part);
#endif
}

}  // namespace blockattn_test
