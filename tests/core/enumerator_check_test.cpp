// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/enumerator_check.hpp>

#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn;
using blockattn_test::contains;

namespace {

enum class small : std::uint8_t { a, b };
enum class wide { a, b, c };

}  // namespace

TEST_CASE("a number that names no enumerator is refused") {
  CHECK_NOTHROW(detail::check_enumerator("f", "x", small::b, small::b));
  CHECK_NOTHROW(detail::check_enumerator("f", "x", wide::a, wide::c));
  CHECK_THROWS_WITH(detail::check_enumerator("f", "x", static_cast<small>(2), small::b),
                    contains("f: x is 2, not one of its enumerators 0 to 1"));
  CHECK_THROWS_WITH(detail::check_enumerator("f", "x", static_cast<wide>(-1), wide::c),
                    contains("f: x is -1, not one of its enumerators 0 to 2"));
}
