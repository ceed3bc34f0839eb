// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/index.hpp>
#include <type_traits>

#include "support/catch.hpp"

using namespace blockattn;

static_assert(std::is_signed_v<index_t> && sizeof(index_t) == 8);

TEST_CASE("ceil_divide counts the pieces that cover a value") {
  for (index_t divisor = 1; divisor <= 9; ++divisor) {
    for (index_t value = 0; value <= 40; ++value) {
      CAPTURE(value, divisor);
      index_t pieces = 0;
      while (pieces * divisor < value) ++pieces;
      CHECK(ceil_divide(value, divisor) == pieces);
      CHECK(round_up(value, divisor) == pieces * divisor);
    }
  }
}

TEST_CASE("ceil_divide and round_up are 64-bit") {
  constexpr index_t large = index_t{1} << 40;
  static_assert(ceil_divide(large + 1, 2) == (large >> 1) + 1);
  static_assert(round_up(large + 1, 64) == large + 64);
}
