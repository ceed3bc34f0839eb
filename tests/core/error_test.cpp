// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/error.hpp>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn;

static_assert(std::is_base_of_v<std::invalid_argument, error>);

TEST_CASE("sentence joins text of every kind with numbers") {
  CHECK(detail::sentence() == "");
  CHECK(detail::sentence("a", std::string(" b"), std::string_view(" c"), ' ', 'd') == "a b c d");
  CHECK(detail::sentence("n is ", std::int64_t{-9007199254740993}) == "n is -9007199254740993");
  CHECK(detail::sentence(true, " and ", false) == "true and false");
}

TEST_CASE("numbers are the shortest text that reads back") {
  CHECK(detail::sentence(0.5F) == "0.5");
  CHECK(detail::sentence(0.1F, " ", 0.1) == "0.1 0.1");
  CHECK(detail::sentence(1e-40) == "1e-40");
  CHECK(detail::sentence(-3.0) == "-3");
  CHECK(detail::sentence(1e300) == "1e+300");
  CHECK(detail::sentence(std::numeric_limits<double>::denorm_min()) == "5e-324");
  CHECK(detail::sentence(-std::numeric_limits<float>::infinity()) == "-inf");
  CHECK(detail::sentence(0.1L).substr(0, 3) == "0.1");
  const double third = 1.0 / 3;
  CHECK(std::stod(detail::sentence(third)) == third);
}

TEST_CASE("require throws error with its sentence only when the condition is false") {
  CHECK_NOTHROW(detail::require(true, "never said"));
  CHECK_THROWS_AS(detail::require(false, "x is ", 3), error);
  CHECK_THROWS_WITH(detail::require(false, "plan: x is ", 3, ", must be below ", 2),
                    blockattn_test::contains("plan: x is 3, must be below 2"));
}

TEST_CASE("fail always throws") { CHECK_THROWS_AS(detail::fail("no"), error); }
