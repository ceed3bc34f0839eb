// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <blockattn/mask/mask_from_slices.hpp>

#include <limits>

#include "mask/mask_checks.hpp"
#include "support/catch.hpp"
#include "support/contains.hpp"

using namespace blockattn_test;

TEST_CASE("hand-made slices become a mask") {
  const std::vector<slice> slices = {{.queries = {2, 4}, .keys = {0, 2}},
                                     {.queries = {0, 2}, .keys = {0, 2}, .upper = 0},
                                     {.queries = {1, 1}, .keys = {0, 5}}};
  const auto mask = mask_from_slices(4, 5, slices);
  CHECK(picture(mask) == "x....\nxx...\nxx...\nxx...\n");
  CHECK(mask.slices().size() == 2);
  check_laws(mask);
  CHECK(mask_from_slices(0, 0, {}).slices().empty());
}

TEST_CASE("limits of any size are safe") {
  constexpr index_t lowest = std::numeric_limits<index_t>::min();
  constexpr index_t highest = std::numeric_limits<index_t>::max();
  const auto all = mask_from_slices(
      3, 3,
      std::vector<slice>{{.queries = {0, 3}, .keys = {0, 3}, .lower = lowest, .upper = highest}});
  CHECK(all.slices() == std::vector<slice>{{.queries = {0, 3}, .keys = {0, 3}}});
  const auto none = mask_from_slices(
      3, 3,
      std::vector<slice>{{.queries = {0, 3}, .keys = {0, 3}, .lower = highest},
                         {.queries = {0, 3}, .keys = {0, 3}, .upper = lowest},
                         {.queries = {0, 3}, .keys = {0, 3}, .lower = highest, .upper = lowest}});
  CHECK(none.slices().empty());
}

TEST_CASE("slices outside their axis are refused by number and name") {
  const auto build = [](const slice& s) { return mask_from_slices(4, 5, std::vector{slice{}, s}); };
  CHECK_THROWS_WITH(build({.queries = {0, 5}, .keys = {0, 5}}),
                    contains("slices[1].queries is [0, 5)") && contains("[0, 4)"));
  CHECK_THROWS_WITH(build({.queries = {-1, 4}, .keys = {0, 5}}), contains("[-1, 4)"));
  CHECK_THROWS_WITH(build({.queries = {3, 2}, .keys = {0, 5}}), contains("[3, 2)"));
  CHECK_THROWS_WITH(build({.queries = {0, 4}, .keys = {1, 6}}),
                    contains("slices[1].keys is [1, 6)") && contains("[0, 5)"));
  CHECK_NOTHROW(build({.queries = {0, 4}, .keys = {0, 5}}));
  CHECK_THROWS_WITH(mask_from_slices(-1, 5, {}), contains("query_tokens is -1"));
  CHECK_THROWS_WITH(mask_from_slices(4, -5, {}), contains("key_tokens is -5"));
}

TEST_CASE("overlapping slices are refused by number and pair") {
  CHECK_THROWS_WITH(mask_from_slices(4, 4,
                                     std::vector<slice>{{.queries = {0, 2}, .keys = {0, 4}},
                                                        {.queries = {2, 4}, .keys = {0, 2}},
                                                        {.queries = {3, 4}, .keys = {1, 4}}}),
                    contains("slices[1] and slices[2] overlap at query 3, key 1"));
}
