// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/core/index_list.hpp>

#include <array>
#include <limits>
#include <list>
#include <span>

#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn;
using blockattn_test::contains;

namespace {

std::vector<index_t> taken(const index_list& list) { return list.values(); }

}  // namespace

TEST_CASE("an index_list takes what callers have") {
  const std::vector<index_t> expected = {3, 0, -2};
  CHECK(taken({}).empty());
  CHECK(taken({3, 0, -2}) == expected);
  CHECK(taken(expected) == expected);
  CHECK(taken(std::vector<int>{3, 0, -2}) == expected);
  CHECK(taken(std::array<short, 3>{3, 0, -2}) == expected);
  CHECK(taken(std::span<const index_t>(expected)) == expected);
  CHECK(taken(std::list<long>{3, 0, -2}) == expected);
  const std::size_t size = 7;
  CHECK(taken({size, size}) == std::vector<index_t>{7, 7});
  const index_list list = {1, 2};
  CHECK(taken(index_list(list)) == std::vector<index_t>{1, 2});  // a copy, not a range of ranges
}

TEST_CASE("an index_list refuses what 64 signed bits cannot hold") {
  constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<index_t>::max());
  CHECK(taken(std::array<std::uint64_t, 1>{most}).front() == std::numeric_limits<index_t>::max());
  CHECK_THROWS_WITH(taken(std::array<std::uint64_t, 2>{0, most + 1}),
                    contains("element 1 is 9223372036854775808"));
}
