// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/layout/token_axis.hpp>

#include "support/catch.hpp"
#include "support/contains.hpp"
#include "support/random.hpp"

using namespace blockattn_test;

TEST_CASE("an axis holds between 0 and max_axis_tokens tokens") {
  CHECK_NOTHROW(detail::require_axis("f", "n", 0));
  CHECK_NOTHROW(detail::require_axis("f", "n", max_axis_tokens));
  CHECK_THROWS_WITH(detail::require_axis("f", "n", -1), contains("f: n is -1"));
  CHECK_THROWS_WITH(detail::require_axis("f", "n", max_axis_tokens + 1), contains("2147483649"));
}
